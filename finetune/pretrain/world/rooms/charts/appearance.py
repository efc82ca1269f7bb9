"""Questions about a chart's appearance: its kind, its entries and their colours, captions."""

from finetune.pretrain.world.drawing.paint import COLOURS
from finetune.pretrain.world.rooms.charts.values import ChartQuestionMaker, Entry
from finetune.pretrain.world.wording.phrasing import join_words, with_article

KIND_NAMES = {"bars": "bar chart", "flat": "bar chart", "line": "line chart", "pie": "pie chart"}


def ask_kind(maker: ChartQuestionMaker) -> None:
    """Ask what kind of chart it is, or whether it is a certain kind."""
    name = KIND_NAMES[maker.scene.layout]
    if maker.rng.random() < 0.5:
        maker.add(
            "kind",
            maker.phrase(
                "What kind of chart is this?",
                "What type of chart is it?",
                "Which chart is this?",
                "~What chart is this?",
            ),
            name,
            f"It is a {name}.",
        )
        return
    asked = maker.rng.choice(("bar chart", "line chart", "pie chart", name))
    maker.add_yes_no(
        "kind",
        maker.phrase(
            "Is this a {k}?",
            "Is there a {k}?",
            "Do you see a {k}?",
            "Is it a {k}?",
            "Does the {pic} show a {k}?",
            k=asked,
        ),
        asked == name,
        f"it is a {name}",
    )


def ask_counts(maker: ChartQuestionMaker) -> None:
    """Ask how many entries there are, and how many are above or below a value."""
    number = len(maker.entries)
    maker.add(
        "count",
        maker.phrase(
            "How many {n}s are there?",
            "How many {n}s does the chart have?",
            "Count the {n}s.",
            "How many {n}s do you see?",
            "Give me the number of {n}s.",
            "~How many {n}s are in the chart?",
            n=maker.word,
        ),
        str(number),
        f"There are {number} {maker.word}s.",
    )
    if maker.is_pie or maker.rng.random() < 0.4:
        return
    limit = maker.rng.randint(2, 8)
    more = maker.rng.random() < 0.5
    hits = sum(e.value > limit if more else e.value < limit for e in maker.entries)
    side = "above" if more else "below"
    maker.add(
        "count",
        maker.phrase(
            "How many {n}s are {s} {v}?",
            "How many {n}s have a value {s} {v}?",
            "~Count the {n}s {s} {v}.",
            n=maker.word,
            s=side,
            v=limit,
        ),
        str(hits),
        f"{hits} {maker.word}{'s are' if hits != 1 else ' is'} {side} {limit}.",
    )


def ask_colour(maker: ChartQuestionMaker) -> None:
    """Ask for or about a colour, as far as the chart has names to ask by."""
    one = maker.rng.choice(maker.entries)
    if maker.scene.layout == "line":
        colour_of_line(maker, one.colour)
    elif maker.scene.extra["names"]:
        colour_of_entry(maker, one)
    else:
        confirm_colour(maker, one.colour)
        if not maker.is_pie:
            colour_of_best(maker)


def colour_of_line(maker: ChartQuestionMaker, colour: str) -> None:
    """Ask for the colour of the line."""
    maker.add(
        "colour",
        maker.phrase(
            "What colour is the line?",
            "Which colour is the line?",
            "What is the colour of the line?",
            "~Tell me the colour of the line.",
        ),
        colour,
        f"The line is {colour}.",
    )


def colour_of_entry(maker: ChartQuestionMaker, one: Entry) -> None:
    """Ask for the colour of a named entry."""
    maker.add(
        "colour",
        maker.phrase(
            "What colour is {x}?",
            "Which colour is {x}?",
            "What is the colour of {x}?",
            "What colour has {x} got?",
            "~Which colour does {x} have?",
            x=one.name,
        ),
        one.colour,
        f"{one.name} is {one.colour}.",
    )


def confirm_colour(maker: ChartQuestionMaker, colour: str) -> None:
    """Ask whether there is an entry of this colour, or of a random one."""
    asked = colour if maker.rng.random() < 0.5 else maker.rng.choice(list(COLOURS))
    here = asked in [e.colour for e in maker.entries]
    maker.add_yes_no(
        "existence",
        maker.phrase(
            "Is there {a} {n}?",
            "Do you see {a} {n}?",
            "Is one {n} {c}?",
            "~Does the chart have {a} {n}?",
            a=with_article(asked),
            n=maker.word,
            c=asked,
        ),
        here,
        f"there is {with_article(asked)} {maker.word}"
        if here
        else f"there is no {asked} {maker.word}",
    )


def colour_of_best(maker: ChartQuestionMaker) -> None:
    """Ask for the colour of the highest or lowest entry."""
    high = maker.rng.random() < 0.5
    word, top = "highest" if high else "lowest", maker.best(high)
    if top is None:
        return
    maker.add(
        "extreme",
        maker.phrase(
            "What colour is the {w} {n}?",
            "What is the colour of the {w} {n}?",
            w=word,
            n=maker.word,
        ),
        top.colour,
        f"The {word} {maker.word} is {top.colour}.",
    )


def ask_caption(maker: ChartQuestionMaker) -> None:
    """Ask for a caption that lists the values."""
    question = maker.phrase(
        "What does the {pic} show?",
        "Describe the {pic} briefly.",
        "What is in the {pic}?",
        "Caption this {pic}.",
        "What do you see?",
        "Describe the chart.",
        "~What do you see in the {pic}?",
    )
    name = KIND_NAMES[maker.scene.layout]
    if not maker.has_values:
        parts = [e.short for e in maker.entries]
        text = f"The picture shows a pie chart with {len(parts)} slices: {join_words(parts)}."
    else:
        parts = [f"{e.short} {maker.value_text(e.value)}" for e in maker.entries]
        text = f"The picture shows a {name}: {join_words(parts)}."
    maker.add("caption", question, "", text)
