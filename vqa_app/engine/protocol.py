"""The interface between a model and the browser or shell: typed values and no torch.

`vqa_app.engine.local.LocalEngine` runs a transformers model in this process,
`vqa_app.engine.remote.RemoteEngine` asks a server; tests use a fake.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from vqa_app.errors import SchemaError, UsageError
from vqa_app.files import JSON_ERRORS, json_problem
from vqa_app.numeric import checked_float, checked_integer
from vqa_app.prompts.conversation import Conversation

if TYPE_CHECKING:
    import numpy as np

FinishReason: TypeAlias = Literal["stop", "length", "repetition", "cancelled"]
"""Why an answer ended: an end token or stop string, the token limit, a loop (the model repeated
the same words and would not have stopped), or the user."""


MAX_TOP_LOG_PROBABILITIES = 20
NOT_SURE = "I am not sure."
"""Given in place of an answer that is less certain than somebody wants."""


@dataclass(frozen=True)
class GenerationOptions:
    """How to generate an answer. None takes the value of the model's generation config."""

    max_new_tokens: int = 256
    """Longest answer, in tokens."""
    temperature: float | None = None
    """0 decodes greedily, which is reproducible."""
    top_p: float | None = None
    """Sample from the likeliest tokens up to this total probability."""
    top_k: int | None = None
    """Sample from this many of the likeliest tokens; 0 samples from all."""
    repetition_penalty: float | None = None
    """Above 1 makes tokens that occurred before less likely. Setting another value than the model's
    own also allows endless repetitions, which otherwise end the answer."""
    presence_penalty: float | None = None
    """Subtracted from the logit of each token that the answer contains already, as OpenAI defines
    it. Any value but 0 allows endless repetitions, as `repetition_penalty` does."""
    frequency_penalty: float | None = None
    """The same, multiplied by how often the answer contains the token."""
    seed: int | None = None
    """Makes sampled answers reproducible."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these strings."""
    system: str | None = None
    """System prompt; replaces the conversation's own."""
    schema: str | None = None
    """JSON schema that the answer follows, as JSON. A model on this machine needs the package
    llguidance for it; which keywords can be enforced is found out when the question is asked."""
    top_log_probabilities: int | None = None
    """How many of the likeliest tokens to report at each position, with their log probabilities;
    0 reports those of the answer's own tokens alone, None none at all."""

    def __post_init__(self) -> None:
        """Check the values, and convert numbers to the types that they are declared with.

        Raises:
            SchemaError: The schema is no JSON object.
            UsageError: Another value cannot be used.
        """
        integers = {
            "max_new_tokens": (1, 1 << 20),
            "top_k": (0, 1 << 20),
            "seed": (-(1 << 63), (1 << 63) - 1),
            "top_log_probabilities": (0, MAX_TOP_LOG_PROBABILITIES),
        }
        floats = {
            "temperature": (0.0, 10.0),
            "top_p": (1e-6, 1.0),
            "repetition_penalty": (0.01, 10.0),
            "presence_penalty": (-2.0, 2.0),
            "frequency_penalty": (-2.0, 2.0),
        }
        numbers: dict[str, int | float] = {}
        for name, whole_limits in integers.items():
            value = getattr(self, name)
            if value is not None or name == "max_new_tokens":
                numbers[name] = checked_integer(name, value, *whole_limits)
        for name, limits in floats.items():
            value = getattr(self, name)
            if value is not None:
                numbers[name] = checked_float(name, value, *limits)
        for name, number in numbers.items():
            object.__setattr__(self, name, number)  # the dataclass is frozen
        if isinstance(self.stop, str):
            raise UsageError(
                f"stop is the single string {self.stop!r}.", "Give a tuple of strings: ('.',)"
            )
        if self.schema is not None:
            _check_schema(self.schema)


def _check_schema(schema: str) -> None:
    try:
        parsed = json.loads(schema)
    except JSON_ERRORS as error:
        raise SchemaError(
            f"The schema cannot be read: {json_problem(error)}.", "Check it with a JSON editor."
        ) from error
    try:
        json.dumps(parsed, allow_nan=False)
    except ValueError as error:
        raise SchemaError(
            "The schema has a number that JSON does not have, such as NaN.", "Use another one."
        ) from error
    if not isinstance(parsed, dict):
        raise SchemaError(
            "A JSON schema is an object.", 'For example: {"type": "object", "properties": ...}'
        )


AGAIN_TEMPERATURE = 0.7
"""Of a second answer to a question, where the model's own is 0: at 0 it would be the first."""


def vary(options: GenerationOptions, defaults: GenerationOptions, number: int) -> GenerationOptions:
    """Return options for another answer to a question that was answered before.

    It is sampled unless somebody chose temperature 0, and from another seed than the first. With a
    chosen seed it is as reproducible as the first answer.

    Args:
        options: Those of the first answer; None where nothing was chosen.
        defaults: The model's own; see `ModelInfo`.
        number: 1 for the second answer, 2 for the third, and so on.
    """
    temperature = options.temperature
    if temperature is None:
        temperature = defaults.temperature or AGAIN_TEMPERATURE
    seed = None if options.seed is None else (options.seed + number) % (1 << 63)
    return replace(options, temperature=temperature, seed=seed)


@dataclass(frozen=True)
class Status:
    """A step before the first text of an answer."""

    state: Literal["waiting", "looking", "answering"]
    """Waiting in the queue; encoding pictures and prompt; generating."""
    place: int = 0
    """While waiting: number of questions before this one in the queue; 0 for the next one."""


@dataclass(frozen=True)
class TokenLogProbability:
    """A token and how likely it was at its position."""

    token: str
    """Its text; parts of a character are replaced by U+FFFD."""
    bytes: bytes
    """Its text in UTF-8, possibly a part of a character."""
    log_probability: float
    """The model's own, before penalties and temperature; with a schema, among the tokens that it
    allows."""
    top: tuple[TokenLogProbability, ...] = ()
    """The likeliest tokens at this position, in descending order; these have no `top`."""


@dataclass(frozen=True)
class Delta:
    """The next piece of an answer: whole characters, no special tokens."""

    text: str
    log_probabilities: tuple[TokenLogProbability, ...] = ()
    """The tokens generated since the last piece, if the options ask for them. The text may be
    empty then: tokens may end a stop string, or begin a character that is never completed."""


@dataclass(frozen=True)
class Answer:
    """A complete answer, the last event of a stream.

    Numbers that are None are unknown: a server elsewhere does not send them.
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int | None
    """Length of the prompt, image tokens included."""
    image_tokens: int | None
    cached_tokens: int | None
    """Number of prompt tokens that came from the KV cache."""
    new_tokens: int | None
    seconds_to_first_token: float
    tokens_per_second: float
    """Decoding speed after the first token; 0.0 for answers of one token, or if unknown."""
    confidence: float | None
    """How likely the answer is right, 0 to 1, if `calibrated`; otherwise how sure the model is of
    its words: the geometric mean of the answer tokens' probabilities."""
    dropped_messages: int = 0
    """Number of messages left out to fit the context: questions and their answers."""
    dropped_turns: tuple[int, ...] = ()
    """Numbers of those questions, from 0 in the order of the conversation."""
    model: str = ""
    """Name of the model and adapter that answered."""
    fields: Mapping[str, float] | None = None
    """Of an answer that follows a schema and is complete: how sure the model is of each value, 0 to
    1, by paths such as `objects[0].colour`."""
    calibrated: bool = False
    """Whether `vqa-app eval --calibrate` has measured what the model's probabilities are worth.
    False for answers that are not complete, that deny something, or that are longer than those that
    were measured."""
    log_probabilities: tuple[TokenLogProbability, ...] = ()
    """All generated tokens but the end token, if the options ask for them; those of a stop string
    are among them, though not in `text`."""


def confidence_text(confidence: float, calibrated: bool) -> str:
    """Return in words what an answer's confidence says."""
    share = f"{min(99, round(100 * confidence))} %"  # no answer is certain
    return f"{share} likely to be right" if calibrated else f"{share} sure of its words"


Event: TypeAlias = "Status | Delta | Answer"


@dataclass(frozen=True)
class PictureInput:
    """What a model gets of a picture."""

    tokens: int | None
    """None if unknown."""
    images: int
    """1, or the number of tiles that it is split into."""
    width: int
    """Of each of them, in pixels; 0 if unknown."""
    height: int


@dataclass(frozen=True)
class TokenCount:
    """Length of a prompt, in tokens; None if only a server elsewhere knows it."""

    prompt: int | None
    """All tokens, image tokens included."""
    image: int | None
    pictures: tuple[PictureInput, ...] = ()
    """The pictures of the conversation, in their order."""


@dataclass(frozen=True)
class ModelInfo:
    """Description of a loaded model."""

    name: str
    """`builtin`, a hub id, a path, or the address of a server and its model's name there."""
    adapter: str | None
    architecture: str
    parameters: int | None
    """None if unknown."""
    device: str
    dtype: str
    quantization: str | None
    context_length: int | None
    """Longest sequence, in tokens; None if unknown."""
    attention_maps: bool
    """Whether `Engine.attention_map` supports this architecture."""
    concurrency: int = 1
    """How many questions are answered at once; others wait in line."""
    defaults: GenerationOptions = field(default_factory=GenerationOptions)
    """The values of the model's generation config."""
    low_detail: bool = False
    """Whether pictures take fewer tokens after `at_low_detail`: the model splits them into tiles,
    or takes them in their own size."""
    system_prompts: bool = True
    """Whether the model can follow a system prompt. One that was never trained with any, like the
    built-in model, is only confused by it."""

    @property
    def label(self) -> str:
        """Model and adapter in one string."""
        return f"{self.name} + {self.adapter}" if self.adapter else self.name


@dataclass(frozen=True)
class AttentionMap:
    """Where the model looked: one map for each answer token and picture."""

    tokens: tuple[str, ...]
    """The answer's tokens as text; joined they are the answer."""
    maps: tuple[np.ndarray, ...]
    """One array for each picture of the conversation: [tokens, rows, columns], each token's map
    non-negative with a sum of 1; rows and columns cover the whole original picture. All zeros for
    pictures of turns that were left out to fit the context."""


class Engine(Protocol):
    """A model that answers questions about pictures. All methods are thread-safe."""

    @property
    def info(self) -> ModelInfo:
        """Description of the model."""
        ...

    def stream(
        self,
        conversation: Conversation,
        options: GenerationOptions | None = None,
        cancel: threading.Event | None = None,
    ) -> Iterator[Event]:
        """Answer the last message.

        To fit the context, whole turns are left out: the oldest first, those with pictures last.

        Args:
            conversation: Messages up to the question.
            options: How to generate; None takes the model's own values.
            cancel: Setting it ends generation within one token with an `Answer` that holds the
                text so far. Closing the iterator ends generation without an `Answer`.

        Yields:
            `Status` until there is text, then `Delta`s, and one `Answer` at the end.

        Raises:
            ContextOverflowError: The last message alone is too long.
            VqaError: Any other error that the user can correct.
        """
        ...

    def warm(self, conversation: Conversation, cancel: threading.Event | None = None) -> None:
        """Encode the pictures and prefill the known part of a prompt, so that answers start sooner.

        The last user message may still lack its text; only what precedes that text is prefilled.
        Blocks until done and pauses while questions are waiting.

        Args:
            conversation: Messages up to the question being typed.
            cancel: Setting it ends the work.
        """
        ...

    def count_tokens(self, conversation: Conversation) -> TokenCount:
        """Return the length of the conversation's prompt."""
        ...

    def score(
        self,
        conversation: Conversation,
        choices: Sequence[str],
        cancel: threading.Event | None = None,
    ) -> list[float]:
        """Return the probabilities of the given answers, by length-normalised likelihood.

        They sum to 1. As in `stream`, turns are left out to fit the context.

        Args:
            conversation: Messages up to the question.
            choices: The answers.
            cancel: Setting it ends the work after the forward pass that is running.

        Raises:
            CancelledError: `cancel` was set.
            ContextOverflowError: The last message and the longest answer alone are too long.
        """
        ...

    def image_gain(
        self, conversation: Conversation, answer: str, cancel: threading.Event | None = None
    ) -> float:
        """Return how much the pictures raise an answer's log probability, in nats per token.

        Compares them with blank pictures of the same size. About 0 means that the model would say
        this about any picture. See `score` for `cancel`.

        Raises:
            CancelledError: See `score`.
            ContextOverflowError: See `score`.
        """
        ...

    def attention_map(
        self, conversation: Conversation, answer: str, cancel: threading.Event | None = None
    ) -> AttentionMap:
        """Return where the model looked for each token of `answer`. See `score` for `cancel`.

        Raises:
            CancelledError: See `score`.
            ModelError: The architecture does not support this; the message says why.
            ContextOverflowError: See `score`.
        """
        ...

    def close(self) -> None:
        """Cancel running answers and free the model."""
        ...
