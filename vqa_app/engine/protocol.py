"""What the browser and the shell see of a model: a small typed protocol, without torch.

`vqa_app.engine.local.LocalEngine` runs a transformers model in this process; tests bring a fake
one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from vqa_app.errors import UsageError
from vqa_app.prompts.conversation import Conversation

if TYPE_CHECKING:
    import numpy as np

FinishReason: TypeAlias = Literal["stop", "length", "cancelled"]
"""The model ended its answer (or met a stop string); the token limit came first; somebody
cancelled."""


@dataclass(frozen=True)
class GenerationOptions:
    """How to write an answer. None leaves a choice to the model's generation config."""

    max_new_tokens: int = 256
    """Longest answer, in tokens."""
    temperature: float | None = None
    """0 is greedy and exactly reproducible."""
    top_p: float | None = None
    """Sample among the likeliest tokens up to this probability."""
    top_k: int | None = None
    """Sample among so many of the likeliest tokens; 0 among all."""
    repetition_penalty: float | None = None
    """Above 1 makes tokens that came before less likely."""
    seed: int | None = None
    """Makes sampled answers reproducible."""
    stop: tuple[str, ...] = ()
    """The answer ends before any of these strings."""
    system: str | None = None
    """System prompt; takes the place of the conversation's own."""

    def __post_init__(self) -> None:
        limits: list[tuple[str, type, float, float]] = [
            ("max_new_tokens", Integral, 1, 1 << 20),
            ("temperature", Real, 0.0, 10.0),
            ("top_p", Real, 1e-6, 1.0),
            ("top_k", Integral, 0, 1 << 20),
            ("repetition_penalty", Real, 0.01, 10.0),
            ("seed", Integral, -(1 << 63), (1 << 63) - 1),
        ]
        for name, kind, low, high in limits:
            value = getattr(self, name)
            if value is None and name != "max_new_tokens":
                continue
            if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
                number = "a whole number" if kind is Integral else "a number"
                raise UsageError(f"{name} is {value}.", f"Give {number} from {low:g} to {high:g}.")
        if isinstance(self.stop, str):
            raise UsageError("stop is one text.", "Give several, or one in a tuple: ('.',)")


@dataclass(frozen=True)
class Status:
    """What happens before the first word."""

    state: Literal["waiting", "looking", "answering"]
    """In line behind other questions; reading pictures and prompt; writing."""
    place: int = 0
    """How many questions are served before this one, while waiting."""


@dataclass(frozen=True)
class Delta:
    """The next piece of an answer: whole characters, no special tokens."""

    text: str


@dataclass(frozen=True)
class Answer:
    """The end of a stream."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    """Tokens that the model was given, image tokens included."""
    image_tokens: int
    cached_tokens: int
    """How many of the prompt's tokens came from the cache."""
    new_tokens: int
    seconds_to_first_token: float
    tokens_per_second: float
    """Of decoding, the first token not counted; 0.0 for answers of one token."""
    confidence: float
    """Geometric mean of the answer tokens' probabilities, 0 to 1."""
    dropped_messages: int = 0
    """How many of the oldest messages were left out because the context was full."""
    model: str = ""
    """Name of the model and adapter that answered."""


Event: TypeAlias = "Status | Delta | Answer"


@dataclass(frozen=True)
class TokenCount:
    prompt: int
    """All tokens of the prompt, image tokens included."""
    image: int


@dataclass(frozen=True)
class ModelInfo:
    """What a person may want to know of the model that answers."""

    name: str
    """`builtin`, a hub id or a path."""
    adapter: str | None
    architecture: str
    parameters: int
    device: str
    dtype: str
    quantization: str | None
    context_length: int
    attention_maps: bool
    """Whether `attention_map` works for this architecture."""
    defaults: GenerationOptions = field(default_factory=GenerationOptions)
    """The generation config's own values."""

    @property
    def label(self) -> str:
        return f"{self.name} + {self.adapter}" if self.adapter else self.name


@dataclass(frozen=True)
class AttentionMap:
    """Where the model looked, a map for each answer token and picture."""

    tokens: tuple[str, ...]
    """The answer's tokens as text; joined they give the answer."""
    maps: tuple[np.ndarray, ...]
    """One array for each picture of the conversation: [tokens, rows, columns], each token's map
    non-negative with a sum of 1; rows and columns cover the whole original picture. All zeros for
    pictures of turns that were left out because the context was full."""


class Engine(Protocol):
    """A model that answers questions about pictures. All methods may be called from any thread."""

    @property
    def info(self) -> ModelInfo: ...

    def stream(
        self,
        conversation: Conversation,
        options: GenerationOptions | None = None,
        cancel: threading.Event | None = None,
    ) -> Iterator[Event]:
        """Answers the last message.

        Yields `Status` while nothing can be shown yet, then `Delta`s, last one `Answer`. Setting
        `cancel` ends generation within one token with an `Answer` that holds what came; closing
        the iterator does the same without one.

        Raises:
            ContextOverflowError: the last message alone does not fit.
            VqaError: whatever else a person can mend.
        """
        ...

    def warm(self, conversation: Conversation, cancel: threading.Event | None = None) -> None:
        """Encodes the pictures and prefills what is certain of the prompt: answers start sooner.

        The last user message may still lack its text: only what stands before that text is
        prefilled. Blocks until done; gives way to questions.
        """
        ...

    def count_tokens(self, conversation: Conversation) -> TokenCount: ...

    def score(self, conversation: Conversation, choices: Sequence[str]) -> list[float]:
        """Probabilities of the given answers, by length-normalised likelihood; they sum to 1. As
        when answering, the oldest turns are left out where the context is full.

        Raises:
            ContextOverflowError: the last message and the longest answer alone do not fit.
        """
        ...

    def image_gain(self, conversation: Conversation, answer: str) -> float:
        """How much likelier the answer is with the pictures than with blank ones of the same size,
        in nats per token. About 0: the model would say this about any picture.

        Raises:
            ContextOverflowError: see `score`.
        """
        ...

    def attention_map(self, conversation: Conversation, answer: str) -> AttentionMap:
        """Where the model looked for each token of `answer`.

        Raises:
            ModelError: this architecture does not allow it; the message says why.
            ContextOverflowError: see `score`.
        """
        ...

    def close(self) -> None:
        """Ends running answers and frees the model."""
        ...
