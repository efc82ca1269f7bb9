"""Token ids to text, piece by piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What a decoder gives for a character whose last bytes are still missing."""


class TextStream:
    """Token by token to whole characters, without special tokens, up to the first stop string.

    Attributes:
        text: all that was given out so far.
        stopped: a stop string was met.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._ids: list[int] = []
        # ids[:known] are decoded; ids[shown:known] give the next ones context.
        self._shown = self._known = 0
        self._held = ""
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Takes a token and gives the characters that are certain by now."""
        self._ids.append(token)
        before = self._decode(self._ids[self._shown : self._known])
        after = self._decode(self._ids[self._shown :])
        if len(after) <= len(before) or after.endswith(BROKEN):
            return ""
        self._shown, self._known = self._known, len(self._ids)
        return self._give(after[len(before) :], last=False)

    def finish(self) -> str:
        """What was held back; a character that never became whole is left out."""
        before = self._decode(self._ids[self._shown : self._known])
        after = self._decode(self._ids[self._shown :])
        self._shown = self._known = len(self._ids)
        return self._give(after[len(before) :].rstrip(BROKEN), last=True)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _give(self, new: str, *, last: bool) -> str:
        if self.stopped:
            return ""
        held = self._held + new
        if not self.text:
            held = held.lstrip()  # many tokenizers put a space before a text's first word
        places = [place for stop in self._stops if (place := held.find(stop)) >= 0]
        if places:
            self.stopped = True
            length = min(places)
        else:
            length = len(held) if last else len(held) - self._unsure(held)
        self._held = held[length:]
        self.text += held[:length]
        return held[:length]

    def _unsure(self, text: str) -> int:
        """Length of the longest ending of `text` with which a stop string begins."""
        return max(
            (
                size
                for stop in self._stops
                for size in range(1, min(len(stop), len(text) + 1))
                if text.endswith(stop[:size])
            ),
            default=0,
        )
