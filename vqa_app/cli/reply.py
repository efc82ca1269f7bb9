"""One question, one reply: streamed, chosen among given answers, or withheld when unsure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from vqa_app.cli.terminal import waiting
from vqa_app.engine.protocol import Answer, Delta, Engine, GenerationOptions, Status
from vqa_app.pictures.picture import Picture
from vqa_app.prompts.conversation import Conversation

NOT_SURE = "I am not sure."
"""What `--abstain` prints in place of an answer."""


@dataclass(frozen=True)
class Asking:
    """How questions are to be answered."""

    options: GenerationOptions
    choices: tuple[str, ...] = ()
    """Pick one of these instead of writing freely."""
    abstain: float | None = None
    """Say `NOT_SURE` where the confidence is lower than this."""


@dataclass(frozen=True)
class Reply:
    """What was answered, and how surely."""

    text: str
    """What the person is told."""
    said: str
    """What the model said; differs from `text` where it abstained."""
    confidence: float
    answer: Answer | None = None
    """The stream's end; None where a choice was scored."""
    probabilities: dict[str, float] | None = None

    @property
    def abstained(self) -> bool:
        return self.text != self.said

    def to_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {
            "answer": self.text,
            "confidence": round(self.confidence, 4),
            "abstained": self.abstained,
        }
        if self.abstained:
            row["would_have_said"] = self.said
        if self.probabilities is not None:
            row["choices"] = {text: round(p, 4) for text, p in self.probabilities.items()}
        if self.answer is not None:
            details = asdict(self.answer)
            for known in ("text", "confidence", "model"):
                del details[known]
            row |= {
                key: round(value, 4) if isinstance(value, float) else value
                for key, value in details.items()
            }
        return row


def reply_to(
    engine: Engine,
    conversation: Conversation,
    asking: Asking,
    write: Callable[[str], None] | None = None,
    console: Console | None = None,
) -> Reply:
    """Answers the last message.

    Args:
        engine: who answers.
        conversation: ends with a question.
        asking: how to answer.
        write: gets the reply as it comes, in pieces; in one piece where it must be judged first.
        console: shows what happens before the first word, on a terminal.
    """
    write = write or (lambda text: None)
    if asking.choices:
        with waiting(console, "Weighing the choices"):
            chances = engine.score(_with_system(conversation, asking), asking.choices)
        probabilities = dict(zip(asking.choices, chances, strict=True))
        said = max(probabilities, key=probabilities.__getitem__)
        reply = _judged(said, probabilities[said], asking, probabilities=probabilities)
        write(reply.text)
        return reply
    streams = asking.abstain is None
    answer = _stream(engine, conversation, asking, write if streams else None, console)
    reply = _judged(answer.text, answer.confidence, asking, answer=answer)
    if not streams:
        write(reply.text)
    return reply


def _with_system(conversation: Conversation, asking: Asking) -> Conversation:
    system = asking.options.system
    return conversation if system is None else conversation.with_system(system)


def _judged(said: str, confidence: float, asking: Asking, **details: Any) -> Reply:
    unsure = asking.abstain is not None and confidence < asking.abstain
    return Reply(NOT_SURE if unsure else said, said, confidence, **details)


def _stream(
    engine: Engine,
    conversation: Conversation,
    asking: Asking,
    write: Callable[[str], None] | None,
    console: Console | None,
) -> Answer:
    answer: Answer | None = None
    with waiting(console, "Looking") as status:
        for event in engine.stream(conversation, asking.options):
            match event:
                case Status(state="waiting", place=place):
                    status(f"Waiting behind {place}")
                case Status():
                    status("Looking" if event.state == "looking" else "Answering")
                case Delta(text) if write is not None:
                    status(None)
                    write(text)
                case Answer():
                    answer = event
    assert answer is not None, "a stream ends with its Answer"
    return answer


def tell_notes(reply: Reply, console: Console) -> None:
    """What a person should know of an answer; on a terminal also how it went."""
    answer = reply.answer
    if answer is not None and answer.finish_reason == "length":
        console.print("The answer was cut off; --max-new-tokens allows a longer one.", style="dim")
    if answer is not None and answer.dropped_messages:
        console.print(
            f"The model's context is full: the oldest {answer.dropped_messages} messages were"
            " left out.",
            style="dim",
        )
    if not console.is_terminal:
        return
    facts = [f"confidence {reply.confidence:.0%}"]
    if reply.probabilities is not None:
        facts = [f"{text} {p:.0%}" for text, p in reply.probabilities.items()]
    if answer is not None:
        facts.append(f"first word after {answer.seconds_to_first_token:.2f} s")
        if answer.tokens_per_second:
            facts.append(f"{answer.tokens_per_second:.0f} tokens/s")
    console.print(" · ".join(facts), style="dim", markup=False)


def describe(picture: Picture) -> dict[str, Any]:
    """A picture in a JSON answer."""
    return {
        "name": picture.name,
        "sha256": picture.digest,
        "width": picture.image.width,
        "height": picture.image.height,
        "changes": list(picture.changes),
    }
