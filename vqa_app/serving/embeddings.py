"""Embeddings of texts and pictures in OpenAI's form, by the two towers of a model."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vqa_app.errors import UsageError
from vqa_app.pictures.picture import Picture
from vqa_app.serving.engine_pool import ModelChoice
from vqa_app.serving.model_choices import BUILTIN
from vqa_app.serving.openai_errors import ApiError
from vqa_app.serving.openai_schema import (
    Embedding,
    EmbeddingList,
    EmbeddingRequest,
    EmbeddingUsage,
)

if TYPE_CHECKING:
    from vqa_app.retrieval.towers import Embeddings, Towers


class Embedder:
    """Embeds the inputs of requests. The towers are loaded when they are first asked for.

    Args:
        load: Loads the towers of the built-in model, the only one of the models to chat with that
            has both.
    """

    def __init__(self, load: Callable[[], Towers]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._towers: Towers | None = None

    def check(self, choice: ModelChoice, name: str) -> None:
        """Refuse a model without towers.

        Args:
            choice: The model.
            name: How the request names it.

        Raises:
            ApiError: It has none.
        """
        if choice.key != BUILTIN.key:
            raise ApiError(
                400,
                f"{name} has no towers for texts and pictures, so it has no embeddings."
                " The model builtin has.",
                param="model",
                code="unsupported_model",
            )

    def embed(
        self, request: EmbeddingRequest, inputs: Sequence[str | Picture], model: str
    ) -> EmbeddingList:
        """Return the embeddings.

        Args:
            request: The request.
            inputs: Its texts and pictures, opened.
            model: Name of the model in the response.

        Raises:
            ApiError: A text is empty or too long, or `dimensions` is not the width of the towers.
        """
        with self._lock:
            towers = self._towers = self._towers or self._load()
        if request.dimensions not in (None, towers.width):
            raise ApiError(
                400,
                f"dimensions must be {towers.width}, as many as this model has.",
                param="dimensions",
            )
        tokens = 0
        texts: dict[int, str] = {}
        for number, each in enumerate(inputs):
            if isinstance(each, str):
                texts[number] = each
                tokens += _count(towers, each, request.name_of(number))
        pictures = {k: each.image for k, each in enumerate(inputs) if isinstance(each, Picture)}
        vectors = dict(zip(texts, towers.texts(list(texts.values())), strict=True))
        vectors |= dict(zip(pictures, towers.pictures(list(pictures.values())), strict=True))
        encode = _as_base64 if request.encoding_format == "base64" else _as_numbers
        return EmbeddingList(
            data=[Embedding(index=k, embedding=encode(vectors[k])) for k in range(len(inputs))],
            model=model,
            usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens),
        )


def load_builtin(device: str = "auto") -> Towers:
    """Load the towers of the built-in model, which takes the import of transformers.

    Args:
        device: See `vqa_app.checkpoints.loader.load_model`.
    """
    from vqa_app.retrieval.towers import load_towers

    return load_towers(device=device)


def _count(towers: Towers, text: str, field: str) -> int:
    """Return the length of a text in tokens.

    Raises:
        ApiError: It is empty or too long.
    """
    if not text.strip():
        raise ApiError(400, f"{field} is empty.", param=field)
    try:
        return towers.checked_length(text)
    except UsageError as error:
        message = f"{field}: {error.problem} {error.hint}"
        raise ApiError(400, message, param=field, code="context_length_exceeded") from error


def _as_numbers(vector: Embeddings) -> list[float]:
    return [float(value) for value in vector]


def _as_base64(vector: Embeddings) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
