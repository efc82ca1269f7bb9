"""Ask about pictures: the models, the engine that runs them, and the shell.

The packages form layers, `ui → finetune → vqa_app`, and `tests/test_layers.py` enforces the
order of the rooms within each. `vqa_app` imports neither `ui` nor `finetune`; only its command line
does, when a command that needs them runs.

The public names below are imported on first use, because torch and transformers take seconds to
import and `import vqa_app` should take none.
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

_MODULES = {
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
    if name not in _MODULES:
        raise AttributeError(f"module 'vqa_app' has no attribute {name!r}")
    value = getattr(import_module(f"vqa_app.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
