"""Answers that follow a JSON schema: only tokens that can lead to one are sampled.

Needs the package llguidance, which refuses a schema that it cannot enforce instead of ignoring it.
Tried with llguidance 1.9.1.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vqa_app.errors import SchemaError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MOST_CLOSING_TOKENS = 64
"""From so many tokens before the limit on it is checked whether the answer can still be closed."""
CLOSING = ('"', "}", "]", ",", ":", "0", "1", "n", "a")
"""What closes an answer, the first that the grammar allows, where it leaves a choice."""


class JsonGrammars:
    """Makes constraints for the vocabulary of one model.

    Args:
        tokenizer: The model's fast tokenizer.
        vocabulary: Number of rows of its output embedding.
    """

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._lock = threading.Lock()
        self._prepared: LLTokenizer | None = None

    def constraint(self, schema: str) -> JsonConstraint:
        """Return a new constraint for one answer.

        Args:
            schema: A JSON schema, as `GenerationOptions` accepts it.

        Raises:
            SchemaError: It is no schema, or uses keywords that cannot be enforced; or llguidance is
                not installed.
        """
        try:
            from llguidance import LLMatcher
            from llguidance.hf import from_tokenizer
        except ImportError as error:
            raise SchemaError(
                "Answers that follow a schema need the package llguidance.",
                "Install it: pip install 'vqa-app[schema]'",
            ) from error
        with self._lock:
            if self._prepared is None:
                self._prepared = from_tokenizer(self._tokenizer, n_vocab=self._vocabulary)
        try:
            grammar = LLMatcher.grammar_from_json_schema(
                schema, overrides={"whitespace_flexible": False, "coerce_one_of": True}
            )
            failed, messages = LLMatcher.validate_grammar_with_warnings(grammar, self._prepared)
        except ValueError as error:  # nested too deeply
            failed, messages = True, [str(error)]
        if failed or messages:
            raise SchemaError(
                f"The schema cannot be enforced: {'; '.join(messages)}.",
                "Leave that part out of the schema.",
            )
        return JsonConstraint(self._prepared, grammar, self._vocabulary)


class JsonConstraint:
    """Which tokens an answer may continue with; created by `JsonGrammars`."""

    def __init__(self, tokenizer: LLTokenizer, grammar: str, vocabulary: int) -> None:
        from llguidance import LLMatcher

        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._matcher = LLMatcher(tokenizer, grammar)
        self._closing: list[int] = []
        """Tokens that end the answer, once it must be closed."""

    @property
    def complete(self) -> bool:
        """Whether the answer is whole and nothing can follow."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> Tensor:
        """Return for each token whether the answer may continue with it, [vocabulary]."""
        allowed = _unpack(self._matcher.compute_bitmask())[: self._vocabulary]
        return torch.from_numpy(allowed)

    def push(self, token: int, remaining: int) -> int:
        """Add a token, or another one if too few would remain to close the answer after it.

        Args:
            token: One of the allowed tokens.
            remaining: Tokens that the answer may still take, this one included.

        Returns:
            The token that was added.
        """
        if not self._closing and remaining <= MOST_CLOSING_TOKENS:
            after = self._matcher.deep_copy()
            after.consume_token(token)
            if len(self._closing_tokens(after)) >= remaining:
                closing = self._closing_tokens(self._matcher.deep_copy())
                if len(closing) <= remaining:
                    self._closing = closing
        if self._closing:
            token = self._closing.pop(0)
        self._matcher.consume_token(token)
        return token

    def _closing_tokens(self, matcher: LLMatcher) -> list[int]:
        """Return tokens that complete the answer, without the end token; consumes them."""
        preferred = [self._tokenizer.tokenize_str(text)[-1] for text in CLOSING]
        tokens: list[int] = []
        while len(tokens) < MOST_CLOSING_TOKENS:
            if matcher.is_stopped() or matcher.is_accepting():
                break
            forced = matcher.compute_ff_tokens()
            if not forced:
                allowed = _unpack(matcher.compute_bitmask())
                token = next((token for token in preferred if allowed[token]), None)
                forced = [int(allowed.argmax()) if token is None else token]
            matcher.consume_tokens(forced)
            tokens += forced
        return tokens


def _unpack(bits: bytes) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return a bit mask, lowest bits first, as booleans."""
    return np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little").astype(bool)
