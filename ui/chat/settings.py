"""What a person can set about answers, kept for each owner; None leaves it to the model."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from vqa_app.engine.protocol import GenerationOptions
from vqa_app.errors import UsageError

LONGEST_ANSWER = 2048
LONGEST_SYSTEM = 4000
_SEEDS = 1 << 53
"""Whole numbers below it stay what they are in a browser, and fit torch's generator."""
_NUMBERS = {
    "temperature": (int, float), "top_p": (int, float), "max_new_tokens": int, "seed": int
}  # fmt: skip


@dataclass(frozen=True)
class ChatSettings:
    """A person's choices."""

    model: str | None = None
    """Key of the model that answers; None: the one the server was started with."""
    model_before: str | None = None
    """The one before, for going back."""
    system: str = ""
    temperature: float | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None
    seed: int | None = None
    style: Literal["sentence", "short"] = "sentence"

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ChatSettings:
        """Reads what was stored; what another version wrote and we do not know is left out."""
        known = {field.name for field in fields(cls)}
        try:
            return cls.checked({name: value for name, value in data.items() if name in known})
        except UsageError:
            return cls(model=data.get("model"))

    @classmethod
    def checked(cls, data: dict[str, Any]) -> ChatSettings:
        """Raises UsageError for values that cannot be, and for unknown names."""
        known = {field.name for field in fields(cls)}
        if unknown := set(data) - known:
            raise UsageError(f"Unknown setting {min(unknown)!r}.", "Reload the page.")
        settings = cls(**{name: value for name, value in data.items() if value is not None})
        for name, kinds in _NUMBERS.items():
            value = getattr(settings, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
                raise UsageError("A setting is not a number.", "Give a number.")
        if settings.seed is not None and abs(settings.seed) >= _SEEDS:
            raise UsageError("The seed is too large.", "Give a smaller one.")
        if settings.style not in ("sentence", "short"):
            raise UsageError("The style is neither sentence nor short.", "Pick one of them.")
        if not isinstance(settings.system, str) or len(settings.system) > LONGEST_SYSTEM:
            raise UsageError("The system prompt is too long.", f"Keep it to {LONGEST_SYSTEM:,}.")
        if settings.max_new_tokens is not None and settings.max_new_tokens > LONGEST_ANSWER:
            raise UsageError("The longest answer is too long.", f"At most {LONGEST_ANSWER:,}.")
        settings.options(GenerationOptions())
        return settings

    def options(self, defaults: GenerationOptions) -> GenerationOptions:
        """These choices over a model's defaults."""
        chosen = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
        }
        return replace(
            defaults, **{name: value for name, value in chosen.items() if value is not None}
        )
