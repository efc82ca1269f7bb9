"""Where metrics go besides the run directory: the Trainer's own integrations, asked for by name."""

from __future__ import annotations

from collections.abc import Sequence

from vqa_app.errors import UsageError


def check_reporters(names: Sequence[str]) -> None:
    """Refuses, before anything is read, what would fail when training begins.

    Raises:
        UsageError: no integration of that name, or its package is not installed.
    """
    from transformers.integrations import integration_utils

    for name in names:
        callback = integration_utils.INTEGRATION_TO_CALLBACK.get(name)
        if callback is None:
            raise UsageError(
                f"report_to is {name!r}.", "Give tensorboard, wandb or trackio, or leave it out."
            )
        try:
            callback()
        except (ImportError, RuntimeError) as error:
            raise UsageError(
                f"Cannot report to {name}: it is not installed.", f"pip install {name}"
            ) from error
