"""Ask about pictures: models, the engine that runs them, and the shell.

Layers, each of which imports only what stands to its right (`tests/test_layers.py` keeps them):

    ui → finetune → vqa_app, and in it
    cli → ask → local_engine → loading → modeling, prompting → conversation → images → errors

`vqa_app` imports neither `ui` nor `finetune`; its command line does so inside the command that
needs them. The public names below are imported when they are first used, so that `import vqa_app`
costs nothing: torch and transformers take seconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vqa_app.version import __version__ as __version__

if TYPE_CHECKING:
    from vqa_app.checkpoints.loader import load_model
    from vqa_app.engine.local import LocalEngine
    from vqa_app.engine.protocol import Answer, Delta, Engine, GenerationOptions, Status
    from vqa_app.errors import VqaError
    from vqa_app.pictures.picture import ImageLimits, Picture, open_picture
    from vqa_app.prompts.conversation import Conversation, Message

_HOMES = {
    "Answer": "engine.protocol",
    "Conversation": "prompts.conversation",
    "Delta": "engine.protocol",
    "Engine": "engine.protocol",
    "GenerationOptions": "engine.protocol",
    "ImageLimits": "pictures.picture",
    "LocalEngine": "engine.local",
    "Message": "prompts.conversation",
    "Picture": "pictures.picture",
    "Status": "engine.protocol",
    "VqaError": "errors",
    "load_model": "checkpoints.loader",
    "open_picture": "pictures.picture",
}

__all__ = [
    "Answer",
    "Conversation",
    "Delta",
    "Engine",
    "GenerationOptions",
    "ImageLimits",
    "LocalEngine",
    "Message",
    "Picture",
    "Status",
    "VqaError",
    "load_model",
    "open_picture",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vqa_app' has no attribute {name!r}")
    value = getattr(import_module(f"vqa_app.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
