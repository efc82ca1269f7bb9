"""Questions about written numbers, small sums and digital clocks."""

from finetune.pretrain.world.wording.question_maker import QuestionMaker


def ask_parity(maker: QuestionMaker, value: int, name: str, answer: str) -> None:
    """Ask whether a number is even or odd; `name` is what the question calls it."""
    even = value % 2 == 0
    word = "even" if even else "odd"
    if maker.rng.random() < 0.5:
        maker.add(
            "parity",
            maker.phrase("Is {w} even or odd?", "Is {w} odd or even?", w=name),
            word,
            f"{answer} is {word}.",
        )
        return
    asked = maker.rng.choice(("even", "odd"))
    maker.add_yes_no(
        "parity",
        maker.phrase("Is {w} {a}?", "Is {w} an {a} number?", w=name, a=asked),
        asked == word,
        f"{answer} is {word}",
    )


def ask_colour(maker: QuestionMaker, name: str, value: str) -> None:
    """Ask for the colour of what is written or shown."""
    maker.add(
        "colour",
        maker.phrase(
            "What colour is the {w}?",
            "What is the colour of the {w}?",
            "Which colour is the {w}?",
            "Which colour does the {w} have?",
            "Name the colour of the {w}.",
            "~Tell me the colour of the {w}.",
            w=name,
        ),
        value,
        f"The {name} is {value}.",
    )


def ask_caption(maker: QuestionMaker, what: str) -> None:
    """Ask for a caption, in half of the cases."""
    if maker.rng.random() < 0.5:  # long answers take the longest to learn
        return
    maker.add(
        "caption",
        maker.phrase(
            "What does the {pic} show?",
            "Describe the {pic} briefly.",
            "What is in the {pic}?",
            "Caption this {pic}.",
            "What do you see?",
            "~What do you see in the {pic}?",
        ),
        "",
        f"The picture shows {what}.",
    )


def ask_about_number(maker: QuestionMaker) -> None:
    """Ask about a number that is handwritten or on a display."""
    text, colour_name = maker.scene.extra["text"], maker.scene.extra["ink"].name
    value = int(text)
    for _ in range(2):
        read_number(maker, text)
    ask_parity(maker, value, "the number", str(value))
    compare_with_limit(maker, value)
    confirm_number(maker, text)
    ask_colour(maker, "number", colour_name)
    ask_caption(maker, f"the number {text} in {colour_name}")
    if len(text) == 1:
        add_to_number(maker, value)
        return
    digit_at_position(maker, text)
    last_digit(maker, text)
    count_digits(maker, text)
    sum_of_digits(maker, text)
    largest_digit(maker, text)


def read_number(maker: QuestionMaker, text: str) -> None:
    """Ask which number it is."""
    maker.add(
        "read",
        maker.phrase(
            "What number is this?",
            "Which number is in the {pic}?",
            "What number do you see?",
            "What does it say?",
            "Read the number.",
            "What number is shown?",
            "Which number does the {pic} show?",
            "What number is written here?",
            "Tell me the number.",
            "~Which number is this?",
            "~What number is in the {pic}?",
        ),
        text,
        f"It is {text}." if maker.rng.random() < 0.5 else f"The number is {text}.",
    )


def compare_with_limit(maker: QuestionMaker, value: int) -> None:
    """Ask whether the number is larger or smaller than another one."""
    top = 10 ** len(str(value))
    limit = maker.rng.choice((5, top // 2, max(1, value + maker.rng.choice((-3, -2, 2, 3)))))
    if limit == value:
        return
    more = maker.rng.random() < 0.5
    word = maker.rng.choice(("bigger", "larger", "greater")) if more else "smaller"
    truth = "bigger" if value > limit else "smaller"
    maker.add_yes_no(
        "compare",
        maker.phrase(
            "Is the number {w} than {n}?",
            "Is it {w} than {n}?",
            "Is the number {w} than {n}?",
            "~Is this number {w} than {n}?",
            w=word,
            n=limit,
        ),
        (value > limit) == more,
        f"{value} is {truth} than {limit}",
    )


def confirm_number(maker: QuestionMaker, text: str) -> None:
    """Ask whether it is a certain number, which is often a near miss."""
    asked = text
    if maker.rng.random() < 0.5:
        at = maker.rng.randrange(len(text))
        other = maker.rng.choice([d for d in "123456789" if d != text[at]])
        asked = text[:at] + other + text[at + 1 :]
    if maker.rng.random() < 0.3:
        word = "true" if asked == text else "false"
        maker.add(
            "statement",
            maker.phrase(
                "True or false: the number is {n}.",
                "The number is {n}. True or false?",
                n=asked,
            ),
            word,
            f"That is {word}.",
        )
        return
    maker.add_yes_no(
        "read",
        maker.phrase(
            "Is it {n}?",
            "Is the number {n}?",
            "Does it say {n}?",
            "Is this a {n}?",
            "~Does the number say {n}?",
            n=asked,
        ),
        asked == text,
        f"it is {text}",
    )


def add_to_number(maker: QuestionMaker, value: int) -> None:
    """Ask for the number plus another one."""
    more = maker.rng.randint(1, 9)
    maker.add(
        "arithmetic",
        maker.phrase(
            "What is this number plus {n}?",
            "Add {n} to the number.",
            "What is {n} more?",
            "~What is the number plus {n}?",
            n=more,
        ),
        str(value + more),
        f"{value} plus {more} is {value + more}.",
    )


def digit_at_position(maker: QuestionMaker, text: str) -> None:
    """Ask for the first, second or third digit."""
    names = ("first", "second", "third")
    at = maker.rng.randrange(len(text))
    maker.add(
        "digit",
        maker.phrase(
            "What is the {w} digit?",
            "Which digit comes {w}?",
            "What is the {w} digit of the number?",
            "Name the {w} digit.",
            "~What digit comes {w}?",
            w=names[at],
        ),
        text[at],
        f"The {names[at]} digit is {text[at]}.",
    )


def last_digit(maker: QuestionMaker, text: str) -> None:
    """Ask for the last digit."""
    maker.add(
        "digit",
        maker.phrase(
            "What is the last digit?", "Which digit is the last?", "Which digit comes last?"
        ),
        text[-1],
        f"The last digit is {text[-1]}.",
    )


def count_digits(maker: QuestionMaker, text: str) -> None:
    """Ask how many digits the number has."""
    maker.add(
        "count",
        maker.phrase(
            "How many digits does the number have?",
            "How many digits are there?",
            "How many digits do you see?",
            "Count the digits.",
            "~How many digits are in the {pic}?",
        ),
        str(len(text)),
        f"The number has {len(text)} digits.",
    )


def sum_of_digits(maker: QuestionMaker, text: str) -> None:
    """Ask for the sum of the digits."""
    total = sum(map(int, text))
    maker.add(
        "arithmetic",
        maker.phrase(
            "What is the sum of the digits?",
            "Add the digits.",
            "What do the digits add up to?",
            "~What is the sum of all digits?",
        ),
        str(total),
        f"The digits add up to {total}.",
    )


def largest_digit(maker: QuestionMaker, text: str) -> None:
    """Ask for the largest digit."""
    best = max(text)
    maker.add(
        "compare",
        maker.phrase(
            "What is the largest digit?",
            "Which digit is the highest?",
            "Name the largest digit.",
            "~Which digit is the largest?",
        ),
        best,
        f"The largest digit is {best}.",
    )


def ask_about_sum(maker: QuestionMaker) -> None:
    """Ask about a small addition or subtraction."""
    text = maker.scene.extra["text"]
    a, sign, b = int(text[0]), text[1], int(text[2])
    result, word = (a + b, "plus") if sign == "+" else (a - b, "minus")
    for _ in range(3):
        maker.add(
            "arithmetic",
            maker.phrase(
                "What is the result?",
                "Solve it.",
                "What does it come to?",
                "How much is it?",
                "What is the answer?",
                "Work it out.",
                "Calculate this.",
                "What do you get?",
                "~How much does it come to?",
            ),
            str(result),
            f"{a} {word} {b} is {result}.",
        )
    maker.add(
        "read",
        maker.phrase(
            "What does it say?",
            "What is written here?",
            "Read it to me.",
            "~What does it say here?",
        ),
        f"{a} {sign} {b}",
        f"It says {a} {sign} {b}.",
    )
    names = {"first": a, "second": b}
    for name, value in names.items():
        maker.add(
            "digit",
            maker.phrase("What is the {w} number?", "Which number comes {w}?", w=name),
            str(value),
            f"The {name} number is {value}.",
        )
    asked = result if maker.rng.random() < 0.5 else max(0, result + maker.rng.choice((-1, 1, 2)))
    maker.add_yes_no(
        "arithmetic",
        maker.phrase("Is the result {n}?", "Does it make {n}?", n=asked),
        asked == result,
        f"{a} {word} {b} is {result}",
    )
    plus = maker.rng.random() < 0.5
    maker.add_yes_no(
        "read",
        "Is it an addition?" if plus else "Is it a subtraction?",
        plus == (sign == "+"),
        f"it says {a} {sign} {b}",
    )
    ask_colour(maker, "writing", maker.scene.extra["ink"].name)
    ask_caption(maker, f"{a} {sign} {b}")


def ask_about_clock(maker: QuestionMaker) -> None:
    """Ask about the time on a digital clock."""
    text = maker.scene.extra["text"]
    time = f"{text[:2]}:{text[2:]}"
    hour, minute = int(text[:2]), int(text[2:])
    for _ in range(3):
        maker.add(
            "time",
            maker.phrase(
                "What time is it?",
                "What time does the clock show?",
                "What is the time?",
                "What time is shown?",
                "Tell me the time.",
                "~What does the clock say?",
            ),
            time,
            f"It is {time}.",
        )
    maker.add(
        "time",
        maker.phrase("Which hour is it?", "What is the hour?"),
        str(hour),
        f"The hour is {hour}.",
    )
    maker.add(
        "time",
        maker.phrase("How many minutes past the hour is it?", "How many minutes does it show?"),
        str(minute),
        f"It is {minute} minutes past the hour.",
    )
    late = hour >= 12
    maker.add_yes_no(
        "time",
        maker.phrase("Is it past noon?", "Is it afternoon?", "Is it after 12:00?")
        if time != "12:00"
        else "Is it noon or later?",
        late,
        f"it is {time}",
    )
    ask_colour(maker, "display", maker.scene.extra["ink"].name)
    ask_caption(maker, f"a digital clock that shows {time}")
