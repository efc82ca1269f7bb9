"""Token ids to text, piece by piece."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream

_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
"""A token of one byte in vocabularies with byte fallback."""


class TokenBytes:
    """Tells what text single tokens stand for, in bytes, because some are parts of characters.

    Args:
        tokenizer: A fast tokenizer of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = set(tokenizer.added_tokens_decoder)
        decoder = tokenizer.backend_tokenizer.decoder
        state = json.loads(decoder.__getstate__()) if decoder is not None else {}
        kinds = {part.get("type") for part in (state, *state.get("decoders", ()))}
        self._bytes = _byte_level_alphabet() if "ByteLevel" in kinds else None

    def __call__(self, token: int) -> bytes:
        """Return the text of a token; that of a special token is its name."""
        text = self._tokenizer.convert_ids_to_tokens(token) or ""
        if token in self._special:
            return str(text).encode()
        if self._bytes is not None and all(letter in self._bytes for letter in text):
            return bytes(self._bytes[letter] for letter in text)
        if match := _BYTE_TOKEN.fullmatch(text):
            return bytes.fromhex(match[1])
        return str(text).replace("▁", " ").encode()


def _byte_level_alphabet() -> dict[str, int]:
    """Return the byte that each letter of a byte-level vocabulary stands for, as GPT-2 chose them.

    Printable bytes stand for themselves, the others for the characters from 256 on.
    """
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    shifted = {chr(256 + number): byte for number, byte in enumerate(others)}
    return {chr(byte): byte for byte in plain} | shifted


class Detokenizer:
    """Turn tokens into whole characters, without special tokens, up to the first stop string.

    Args:
        tokenizer: A fast tokenizer of transformers.
        stops: Strings that end the text; none of their characters is returned.

    Attributes:
        text: Everything returned so far.
        stopped: Whether a stop string was found.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._stops = [stop for stop in stops if stop]
        self._stream = DecodeStream(skip_special_tokens=True)
        self._last: list[int] = []
        self._held = ""  # may be the beginning of a stop string
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token and return the characters that are certain by now."""
        try:
            new = self._stream.step(self._tokenizer, token)
        except Exception:  # the class that tokenizers raises
            # "Invalid prefix": bytes that are not UTF-8 changed how earlier tokens are decoded.
            # Start again after them, with the last token, so that a word keeps the space before it.
            self._stream = DecodeStream(self._last, skip_special_tokens=True)
            new = self._stream.step(self._tokenizer, token)
        self._last = [token]
        return self._release(new) if new else ""

    def finish(self) -> str:
        """Return the text held back for a stop string; incomplete characters are dropped."""
        return self._release("", is_last=True)

    def _release(self, new: str, *, is_last: bool = False) -> str:
        if self.stopped:
            return ""
        held = self._held + new
        if not self.text:
            held = held.lstrip()  # many tokenizers put a space before a text's first word
        matches = [start for stop in self._stops if (start := held.find(stop)) >= 0]
        if matches:
            self.stopped = True
            length = min(matches)
        else:
            length = len(held) if is_last else len(held) - self._uncertain_length(held)
        self._held = held[length:]
        self.text += held[:length]
        return held[:length]

    def _uncertain_length(self, text: str) -> int:
        """Return the length of the longest ending of `text` that begins a stop string."""
        return max(
            (
                size
                for stop in self._stops
                for size in range(1, min(len(stop), len(text) + 1))
                if text.endswith(stop[:size])
            ),
            default=0,
        )
