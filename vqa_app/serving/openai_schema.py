"""Requests and responses of OpenAI's API, as far as this server supports them.

Whatever a request holds beyond these fields is refused by name, because a client could not tell
that it was ignored. Null means the same as a missing field. A response's extensions stand under one
key, `vqa`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from vqa_app.engine.protocol import MAX_TOP_LOG_PROBABILITIES

MAX_CHOICES = 16
"""Largest `n`."""
MAX_PICTURES = 16
"""Pictures of one request, all its turns together."""
MAX_STOPS = 4
_NO_VALUE = {
    "annotations": [],
    "functions": [],
    "logit_bias": {},
    "metadata": {},
    "parallel_tool_calls": True,
    "service_tier": "auto",
    "store": False,
    "tool_calls": [],
    "tools": [],
}
"""Values of unsupported fields that ask for nothing; some clients send them."""


class _RequestPart(BaseModel):
    """Base of all parts of a request."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, data: Any) -> Any:
        """Drop null and what asks for nothing."""
        if not isinstance(data, dict):
            return data
        return {
            name: value
            for name, value in data.items()
            if value is not None
            and not (name not in cls.model_fields and _NO_VALUE.get(name, _NO_VALUE) == value)
        }


class ImageUrl(_RequestPart):
    """Where a picture is."""

    url: str
    """A `data:` URI, or an http(s) address of a host that the operator allows."""
    detail: Literal["auto", "low", "high"] = "auto"


class ContentPart(_RequestPart):
    """A text or a picture."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None

    @model_validator(mode="after")
    def _check_value(self) -> ContentPart:
        given = {name for name in ("text", "image_url") if getattr(self, name) is not None}
        if given != {self.type}:
            raise ValueError(f"a part of type {self.type} has {self.type} and nothing else")
        return self


class ChatMessage(_RequestPart):
    """One message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: list[ContentPart]

    @field_validator("content", mode="before")
    @classmethod
    def _text_as_part(cls, value: Any) -> Any:
        return [{"type": "text", "text": value}] if isinstance(value, str) else value


class StreamOptions(_RequestPart):
    """Options of a streamed response."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class JsonSchema(_RequestPart):
    """The form of an answer in JSON; it is enforced, whatever `strict` says."""

    name: str = ""
    description: str | None = None
    strict: bool | None = None
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(_RequestPart):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("the type json_schema has json_schema, and the others have not")
        return self

    @property
    def schema_text(self) -> str | None:
        """JSON schema that the answer follows, as JSON."""
        if self.json_schema is not None:
            return json.dumps(self.json_schema.schema_)
        return '{"type": "object"}' if self.type == "json_object" else None


class VqaRequest(_RequestPart):
    """What this server offers beyond OpenAI's API."""

    choices: Annotated[list[str], Field(min_length=1, max_length=100)] | None = None
    """The answer is the most probable of these."""
    abstain: Annotated[float, Field(ge=0, le=1)] | None = None
    """Confidence below which the answer is replaced by "I am not sure."."""
    confidence: bool = False
    image_gain: bool = False
    """Whether to report how much the pictures raise the answer's log probability."""
    attention: bool = False
    """Whether to draw where the model looked."""


class ChatRequest(_RequestPart):
    """The body of `POST /v1/chat/completions`."""

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logprobs: bool = False
    max_completion_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    prompt_cache_key: str | None = None
    """A label without effect on the answer, as `safety_identifier` and `user`."""
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    response_format: ResponseFormat | None = None
    safety_identifier: str | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    stop: Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1 << 20)] | None = None
    """0 and -1 (as vLLM writes it) sample from all tokens."""
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOG_PROBABILITIES)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    user: str | None = None
    vqa: VqaRequest = VqaRequest()

    @field_validator("stop", mode="before")
    @classmethod
    def _stop_as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_combinations(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens exclude each other")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream to be true")
        if self.vqa.choices is not None and (self.n > 1 or self.logprobs or self.schema_text):
            raise ValueError("vqa.choices excludes n, logprobs and response_format")
        if self.vqa.abstain is not None and self.logprobs:
            raise ValueError("vqa.abstain excludes logprobs")
        if self.picture_count > MAX_PICTURES:
            raise ValueError(f"messages have {self.picture_count} pictures, at most {MAX_PICTURES}")
        return self

    @property
    def schema_text(self) -> str | None:
        """JSON schema that the answer follows, as JSON; None for text."""
        return self.response_format.schema_text if self.response_format is not None else None

    @property
    def picture_count(self) -> int:
        """Number of pictures of all messages."""
        return sum(part.type == "image_url" for m in self.messages for part in m.content)


MAX_INPUTS = 256
"""Texts and pictures of one request for embeddings."""


class EmbeddingRequest(_RequestPart):
    """The body of `POST /v1/embeddings`.

    Pictures stand in `input` as parts of type `image_url`, or alone in `messages` as vLLM has them.
    """

    model: str
    input: Annotated[list[ContentPart], Field(min_length=1, max_length=MAX_INPUTS)] | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1)] | None = None
    dimensions: int | None = None
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _texts_as_parts(cls, value: Any) -> Any:
        values = value if isinstance(value, list) else [value]
        if any(isinstance(each, (int, list)) for each in values):
            raise ValueError("tokens are not supported, only texts and pictures")
        return [
            {"type": "text", "text": each} if isinstance(each, str) else each for each in values
        ]

    @model_validator(mode="after")
    def _check_inputs(self) -> EmbeddingRequest:
        if (self.input is None) == (self.messages is None):
            raise ValueError("input is missing: give either input or messages")
        if self.messages is not None and len(self.messages[0].content) != 1:
            raise ValueError("messages must hold one text or one picture, which are embedded apart")
        pictures = sum(part.type == "image_url" for part in self.parts)
        if pictures > MAX_PICTURES:
            raise ValueError(f"input has {pictures} pictures, at most {MAX_PICTURES}")
        return self

    @property
    def parts(self) -> list[ContentPart]:
        """Texts and pictures, one for each embedding."""
        return self.input if self.input is not None else (self.messages or [])[0].content

    def name_of(self, number: int) -> str:
        """Return the name of a part, for messages."""
        return f"input[{number}]" if self.input is not None else "messages[0].content[0]"


def explain(error: ValidationError) -> tuple[str, str | None]:
    """Return in words what is wrong with a request, and the name of the field."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = field_name(first["loc"])
    kind = first["type"]
    if kind == "json_invalid":
        return f"The body is not JSON: {first['ctx']['error']}.", None
    if not field:  # of combinations; their messages begin with a field
        message = _sentence(first["msg"])
        return f"{message}.", message.split()[0] if kind == "value_error" else None
    if kind == "extra_forbidden":
        return f"{field} is not supported by this server.", field
    if kind == "missing":
        return f"{field} is missing.", field
    return f"{field}: {_sentence(first['msg'])}.", field


def _sentence(message: str) -> str:
    return message.removeprefix("Value error, ").rstrip(".")


def field_name(location: tuple[int | str, ...]) -> str:
    """Return the name of a field as OpenAI writes it, such as `messages[0].content`."""
    name = ""
    for step in location:
        name += f"[{step}]" if isinstance(step, int) else f".{step}" if name else step
    return name[:200]


def _is_none(value: object) -> bool:
    return value is None


class PromptTokensDetails(BaseModel):
    """Where the prompt's tokens came from."""

    cached_tokens: int


class Usage(BaseModel):
    """Token counts of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: Annotated[PromptTokensDetails | None, Field(exclude_if=_is_none)]


class TopLogprob(BaseModel):
    """A token and its log probability."""

    token: str
    bytes: list[int]
    logprob: float


class TokenLogprob(TopLogprob):
    """A token of the answer, with the likeliest ones at its position."""

    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    """The tokens of an answer, or of a piece of one."""

    content: list[TokenLogprob]


class ChoiceProbability(BaseModel):
    """One of the given answers."""

    text: str
    probability: float


class VqaResult(BaseModel):
    """What was asked for under `vqa`, and what was done to the prompt; the rest is left out."""

    choices: Annotated[list[ChoiceProbability] | None, Field(exclude_if=_is_none)] = None
    confidence: Annotated[float | None, Field(exclude_if=_is_none)] = None
    calibrated: Annotated[bool | None, Field(exclude_if=_is_none)] = None
    """Whether `confidence` says how likely the answer is right."""
    abstained: Annotated[bool | None, Field(exclude_if=_is_none)] = None
    would_have_said: Annotated[str | None, Field(exclude_if=_is_none)] = None
    image_gain: Annotated[float | None, Field(exclude_if=_is_none)] = None
    """In nats per token."""
    attention: Annotated[list[str] | None, Field(exclude_if=_is_none)] = None
    """For each picture a PNG as a `data:` URI."""
    dropped_messages: Annotated[int | None, Field(exclude_if=_is_none)] = None
    """How many of the oldest messages were left out to fit the context."""


FinishReason = Literal["stop", "length"]


class AnswerMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """One of `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: Logprobs | None = None
    finish_reason: FinishReason
    vqa: Annotated[VqaResult | None, Field(exclude_if=_is_none)] = None


class ChatCompletion(BaseModel):
    """The response to a request without `stream`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Annotated[Usage | None, Field(exclude_if=_is_none)]
    """Left out if a server elsewhere does not send the counts."""


class MessageDelta(BaseModel):
    """The next piece of an answer."""

    role: Annotated[Literal["assistant"] | None, Field(exclude_if=_is_none)] = None
    content: Annotated[str | None, Field(exclude_if=_is_none)] = None


class ChunkChoice(BaseModel):
    """The next piece of one of `n` answers."""

    index: int
    delta: MessageDelta
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None
    vqa: Annotated[VqaResult | None, Field(exclude_if=_is_none)] = None


class ChatCompletionChunk(BaseModel):
    """An event of a streamed response."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Annotated[Usage | None, Field(exclude_if=_is_none)] = None


class Embedding(BaseModel):
    """The vector of a text or picture, of length 1."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    """Numbers, or as base64 of little-endian float32."""


class EmbeddingUsage(BaseModel):
    """Token counts of the texts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """The response to a request for embeddings."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class ModelCard(BaseModel):
    """A model that may be named in requests."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "vqa-app"


class ModelList(BaseModel):
    """The response of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorDetails(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """The body of every response with an error status."""

    error: ErrorDetails
