"""Each owner's settings for answers. None leaves a value to the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from vqa_app.engine.protocol import GenerationOptions, ModelInfo
from vqa_app.errors import UsageError
from vqa_app.pictures.picture import Picture, at_low_detail

LONGEST_ANSWER = 2048
"""Limit of `max_new_tokens`."""
LONGEST_SYSTEM = 4000
"""Longest system prompt, in characters."""
MAX_PROMPTS = 50
"""System prompts that an owner may keep."""
_MAX_SEED = 1 << 53
"""JavaScript represents smaller integers exactly."""
_NUMBERS = ("temperature", "top_p", "max_new_tokens", "seed")


@dataclass(frozen=True)
class ChatSettings:
    """One owner's settings."""

    model: str | None = None
    """Key of the model that answers; None for the one that the server was started with."""
    model_before: str | None = None
    """Key of the model before it, to switch back to."""
    system: str = ""
    temperature: float | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None
    seed: int | None = None
    style: Literal["sentence", "short"] = "sentence"
    detail: Literal["standard", "low"] = "standard"
    """Of pictures, where the model has a choice."""
    prompts: Sequence[str] = ()
    """System prompts that the owner keeps for other chats."""

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ChatSettings:
        """Read stored settings; unknown names, which another version wrote, are ignored."""
        known = {field.name for field in fields(cls)}
        try:
            return cls.checked({name: value for name, value in data.items() if name in known})
        except UsageError:
            return cls(model=data.get("model"))

    @classmethod
    def checked(cls, data: dict[str, Any]) -> ChatSettings:
        """Return the settings of a dict.

        Raises:
            UsageError: A value is invalid, or a name unknown.
        """
        known = {field.name for field in fields(cls)}
        if unknown := set(data) - known:
            raise UsageError(f"Unknown setting {min(unknown)!r}.", "Reload the page.")
        settings = cls(**{name: value for name, value in data.items() if value is not None})
        options = settings.options(GenerationOptions())
        numbers = {name: getattr(options, name) for name in _NUMBERS if name in data}
        settings = replace(
            settings, **{name: value for name, value in numbers.items() if data[name] is not None}
        )
        if settings.seed is not None and abs(settings.seed) >= _MAX_SEED:
            raise UsageError("The seed is too large.", f"Give one below {_MAX_SEED:,}.")
        if settings.style not in ("sentence", "short"):
            raise UsageError("The style is neither sentence nor short.", "Choose one of them.")
        if settings.detail not in ("standard", "low"):
            raise UsageError("The detail is neither standard nor low.", "Choose one of them.")
        if not isinstance(settings.prompts, list | tuple) or len(settings.prompts) > MAX_PROMPTS:
            raise UsageError("There are too many prompts.", f"Keep at most {MAX_PROMPTS}.")
        for system in (settings.system, *settings.prompts):
            check_system_prompt(system)
        if settings.max_new_tokens is not None and settings.max_new_tokens > LONGEST_ANSWER:
            raise UsageError(
                "The maximum answer length is too large.",
                f"Give at most {LONGEST_ANSWER:,} tokens.",
            )
        return settings

    def system_for(self, model: ModelInfo) -> str:
        """Return the system prompt for a model: none for one that cannot follow it."""
        return self.system if model.system_prompts else ""

    def shown(self, picture: Picture, model: ModelInfo) -> Picture:
        """Return a picture in the detail for a model: low only where it has the choice."""
        return at_low_detail(picture) if self.detail == "low" and model.low_detail else picture

    def options(self, defaults: GenerationOptions) -> GenerationOptions:
        """Return generation options: these settings, and otherwise a model's defaults."""
        chosen = {name: getattr(self, name) for name in _NUMBERS}
        return replace(
            defaults, **{name: value for name, value in chosen.items() if value is not None}
        )


def check_system_prompt(system: object) -> str:
    """Return a system prompt.

    Raises:
        UsageError: It is no text, or too long.
    """
    if not isinstance(system, str) or len(system) > LONGEST_SYSTEM:
        raise UsageError(
            "The system prompt is too long.", f"At most {LONGEST_SYSTEM:,} characters fit."
        )
    return system
