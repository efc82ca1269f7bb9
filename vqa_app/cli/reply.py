"""Answer one question: streamed, chosen from given answers, or withheld if unsure."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from vqa_app.cli.terminal import print_note
from vqa_app.engine.protocol import (
    NOT_SURE,
    Answer,
    Delta,
    Engine,
    GenerationOptions,
    Status,
    confidence_text,
)
from vqa_app.engine.remote import RemoteEngine
from vqa_app.errors import ModelError
from vqa_app.files import JSON_ERRORS
from vqa_app.pictures.picture import Picture
from vqa_app.prompts.conversation import Conversation

if TYPE_CHECKING:
    from rich.console import Console

ShowStatus: TypeAlias = Callable[[str | None], None]
"""Shows what is being done, until it is called with None; see `vqa_app.cli.terminal.spinner`."""


ENCODING = "Encoding the picture"
"""What is done first."""


@dataclass(frozen=True)
class AnswerOptions:
    """How questions are answered."""

    generation: GenerationOptions
    choices: tuple[str, ...] = ()
    """Answers to choose from; if empty, the model generates one."""
    abstain: float | None = None
    """Confidence below which the reply is `NOT_SURE`."""


@dataclass(frozen=True)
class JsonValue:
    """A value of JSON, which may be null."""

    content: Any


@dataclass(frozen=True)
class Reply:
    """The answer to a question, with its confidence."""

    text: str
    """What the user reads."""
    model_text: str
    """What the model answered; differs from `text` if it was not confident enough."""
    confidence: float | None
    """None if a server elsewhere does not send it."""
    answer: Answer | None = None
    """The last event of the stream; None if the answer was chosen from given ones."""
    probabilities: dict[str, float] | None = None
    chosen_by: str | None = None
    """How a server elsewhere chose from given answers; see `vqa_app.engine.remote.Choice`."""
    value: JsonValue | None = None
    """The answer as a value, if a schema was given; None if it was cut off or withheld."""

    @property
    def abstained(self) -> bool:
        """Whether the model's answer was withheld."""
        return self.text != self.model_text

    def to_json(self) -> dict[str, Any]:
        """Return the fields that `--json` prints."""
        row: dict[str, Any] = {
            "answer": self.text,
            "confidence": _rounded(self.confidence),
            "calibrated": self.answer is not None and self.answer.calibrated,
            "abstained": self.abstained,
        }
        if self.abstained:
            row["would_have_said"] = self.model_text
        if self.probabilities is not None:
            row["choices"] = {text: round(p, 4) for text, p in self.probabilities.items()}
        if self.chosen_by is not None:
            row["chosen_by"] = self.chosen_by
        if self.answer is not None:
            details = asdict(self.answer)
            for name in ("text", "confidence", "calibrated", "model", "log_probabilities"):
                del details[name]
            row |= {
                key: round(value, 4) if isinstance(value, float) else value
                for key, value in details.items()
            }
            if self.answer.fields is None:
                del row["fields"]
            if self.value is not None:
                row["value"] = self.value.content
        return row


def reply_to(
    engine: Engine,
    conversation: Conversation,
    options: AnswerOptions,
    write: Callable[[str], None] | None = None,
    status: ShowStatus | None = None,
    cancel: threading.Event | None = None,
) -> Reply:
    """Answer the last message.

    Args:
        engine: The engine that answers.
        conversation: A conversation that ends with a question.
        options: How to answer.
        write: Called with each piece of the reply as it is generated, or once with all of it if the
            answer can only be judged at its end.
        status: Shows progress until the first word.
        cancel: Setting it ends the answer within one token; see `Engine.stream` and `Engine.score`.
    """
    write = write or (lambda text: None)
    status = status or (lambda text: None)
    if options.choices:
        status("Scoring the choices")
        reply = _choose(engine, _with_system(conversation, options), options, cancel)
        status(None)
        write(reply.text)
        return reply
    streams = options.abstain is None
    answer = _stream(engine, conversation, options, write if streams else None, status, cancel)
    reply = _judge(answer.text, answer.confidence, options, answer=answer)
    if options.generation.schema is not None and not reply.abstained:
        reply = replace(reply, value=_parsed(answer))
    if not streams:
        status(None)
        write(reply.text)
    return reply


def _parsed(answer: Answer) -> JsonValue | None:
    """Return the value of an answer in JSON; None if it is not complete."""
    if answer.finish_reason != "stop":
        return None
    try:
        return JsonValue(json.loads(answer.text))
    except JSON_ERRORS:  # a stop string left a part of it
        return None


def _with_system(conversation: Conversation, options: AnswerOptions) -> Conversation:
    system = options.generation.system
    return conversation if system is None else conversation.with_system(system)


def _choose(
    engine: Engine,
    conversation: Conversation,
    options: AnswerOptions,
    cancel: threading.Event | None,
) -> Reply:
    """Return the most probable of the given answers."""
    choices = options.choices
    if isinstance(engine, RemoteEngine):
        chosen = engine.choose(conversation, choices)
        method = chosen.method
        if chosen.probabilities is None:
            return _judge(chosen.text, None, options, chosen_by=method)
        scores = list(chosen.probabilities)
    else:
        scores, method = engine.score(conversation, choices, cancel), None
    probabilities = dict(zip(choices, scores, strict=True))
    best = max(probabilities, key=probabilities.__getitem__)
    details = {"probabilities": probabilities, "chosen_by": method}
    return _judge(best, probabilities[best], options, **details)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _judge(text: str, confidence: float | None, options: AnswerOptions, **details: Any) -> Reply:
    """Return the reply, withholding the model's text if its confidence is too low.

    Raises:
        ModelError: Replies may be withheld, but the confidence is unknown.
    """
    if options.abstain is not None and confidence is None:
        raise ModelError(
            "The server does not say how sure the model is, which --abstain needs.",
            "Leave out --abstain, or use a server that sends `logprobs`.",
        )
    unsure = options.abstain is not None and (confidence or 0.0) < options.abstain
    return Reply(NOT_SURE if unsure else text, text, confidence, **details)


def _stream(
    engine: Engine,
    conversation: Conversation,
    options: AnswerOptions,
    write: Callable[[str], None] | None,
    status: ShowStatus,
    cancel: threading.Event | None,
) -> Answer:
    answer: Answer | None = None
    for event in engine.stream(conversation, options.generation, cancel):
        match event:
            case Status(state="waiting", place=place):
                status(f"Waiting; {place} ahead" if place else "Waiting; next in line")
            case Status():
                status("Answering" if event.state == "answering" else ENCODING)
            case Delta(text) if write is not None:
                status(None)
                write(text)
            case Answer():
                answer = event
    assert answer is not None, "a stream ends with its Answer"
    return answer


def print_notes(reply: Reply, console: Console) -> None:
    """Print what was cut from the answer or its prompt, and on a terminal confidence and speed."""
    for note in notes_on(reply):
        print_note(note, console)
    if console.is_terminal and (facts := facts_about(reply)):
        print_note(facts, console)


def notes_on(reply: Reply) -> list[str]:
    """Return what was cut from the answer or its prompt, in sentences."""
    answer = reply.answer
    if answer is None:
        return []
    notes = []
    if answer.finish_reason == "length":
        notes.append("The answer was cut off; --max-new-tokens allows a longer one.")
    if answer.finish_reason == "repetition":
        notes.append("The answer was stopped, because it went on repeating the same words.")
    if answer.dropped_messages:
        notes.append(
            f"The model's context is full: {answer.dropped_messages} earlier messages were left"
            " out, pictures last."
        )
    return notes


def facts_about(reply: Reply) -> str:
    """Return confidence and speed in one line, which may be empty."""
    answer = reply.answer
    facts = []
    if reply.confidence is not None:
        facts = [confidence_text(reply.confidence, answer is not None and answer.calibrated)]
    if reply.chosen_by is not None:
        facts = [f"chosen by {reply.chosen_by}"]
    if reply.probabilities is not None:
        facts = [f"{text} {p:.0%}" for text, p in reply.probabilities.items()]
    if answer is not None:
        facts.append(f"first word after {answer.seconds_to_first_token:.2f} s")
        if answer.tokens_per_second:
            facts.append(f"{answer.tokens_per_second:.0f} tokens/s")
    return " · ".join(facts)


def to_row(question: str, pictures: Sequence[Picture], reply: Reply, model: str) -> dict[str, Any]:
    """Return what `--json` prints."""
    shown = [_picture_to_json(picture) for picture in pictures]
    return {"question": question, "pictures": shown, **reply.to_json(), "model": model}


def _picture_to_json(picture: Picture) -> dict[str, Any]:
    return {
        "name": picture.name,
        "sha256": picture.digest,
        "width": picture.image.width,
        "height": picture.image.height,
        "changes": list(picture.changes),
    }
