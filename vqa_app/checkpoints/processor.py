"""Load a model's processor: its tokenizer, image processor and chat template."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vqa_app.checkpoints.source import Source
from vqa_app.errors import ModelError, first_line
from vqa_app.files import read_json
from vqa_app.quiet import quiet

FALLBACK_TEMPLATES = {
    "paligemma": (
        "{% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}{% endfor %}"
        "{{ bos_token }}{% for message in messages %}"
        "{% for part in message['content'] if part['type'] == 'text' %}"
        "{{ part['text'] }}{% endfor %}"
        "{{ eos_token if message['role'] == 'assistant' else '\n' }}{% endfor %}"
    ),
    "blip-2": (
        "{% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}{% endfor %}"
        "{{ bos_token }}{% for message in messages %}"
        "{{ {'user': 'Question: ', 'assistant': ' ', 'system': ''}[message['role']] }}"
        "{% for part in message['content'] if part['type'] == 'text' %}"
        "{{ part['text'] }}{% endfor %}"
        "{{ {'user': ' Answer:', 'assistant': '\n', 'system': ' '}[message['role']] }}"
        "{% endfor %}"
    ),
    "kosmos-2": (
        "{{ bos_token }}{% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
        "{{ {'user': ' Question: ', 'assistant': ' ', 'system': ' '}[message['role']] }}"
        "{% for part in message['content'] if part['type'] == 'text' %}"
        "{{ part['text'] }}{% endfor %}"
        "{{ ' Answer:' if message['role'] == 'user' else '' }}{% endfor %}"
    ),
}
"""Chat templates by `model_type`, for architectures whose hub repositories have none. They follow
the formats that the authors published for question answering, and are used only if a repository has
no template of its own.

PaliGemma: pictures, `<bos>`, the question, a newline (Beyer et al. 2024, section 3). BLIP-2:
"Question: ... Answer:" after earlier turns (Li et al. 2023, section 4). Kosmos-2: the same words
after the picture, as in its model card."""


_MISSING_PACKAGES = re.compile(r"Missing optional dependencies: ([\w, -]+)\.")
"""What transformers says, in a ValueError, of an image processor that needs another package."""


def load_processor(source: Source, config: Any) -> Any:
    """Load a processor that uses Pillow and has a chat template.

    Settings missing from old checkpoints are taken from the model's config.

    Raises:
        ModelError: The processor is missing or damaged, or has no chat template.
    """
    try:
        with quiet():
            processor = _open(source.directory, config)
    except ImportError as error:
        raise ModelError(
            f"The processor of {source.name} needs a package: {first_line(error)}",
            "Install it and try again.",
        ) from error
    except (ValueError, KeyError, OSError, TypeError, AttributeError) as error:
        if missing := _MISSING_PACKAGES.search(str(error)):
            raise ModelError(
                f"The processor of {source.name} needs {missing[1]}, which is not installed.",
                f"Install it with `pip install {missing[1].replace(',', '')}`.",
            ) from error
        raise ModelError(
            f"Could not load the processor of {source.name}: {first_line(error)}",
            "Its tokenizer or image processor files are missing or damaged; choose another model.",
        ) from error
    if getattr(processor, "tokenizer", None) is None or not hasattr(processor, "image_processor"):
        raise ModelError(
            f"{source.name} has no processor for both text and pictures.", "Choose another model."
        )
    _add_missing_settings(processor, config, source.directory)
    owners = (processor, processor.tokenizer)
    if not any(getattr(owner, "chat_template", None) for owner in owners):
        template = FALLBACK_TEMPLATES.get(config.model_type)
        if template is None:
            raise ModelError(
                f"{source.name} has no chat template, so it is not a chat model.",
                "Choose its instruction-tuned version, or add a chat_template.jinja to its folder.",
            )
        processor.chat_template = template
    return processor


def without_video(kind: Any) -> Any:
    """Return a subclass of a processor class that accepts `no_video()` as its video processor.

    The real video processors need torchvision.
    """

    class PictureProcessor(kind):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name == "video_processor":
                return type(argument)
            return super().check_argument_for_proper_class(argument_name, argument)

    PictureProcessor.__name__ = kind.__name__  # the name is saved with the processor
    return PictureProcessor


def no_video(settings: dict[str, Any] | None = None) -> Any:
    """Return a placeholder for a video processor, which keeps its settings for saving.

    Args:
        settings: The settings of the real video processor.
    """
    from transformers.utils import PushToHubMixin

    class NoVideo(PushToHubMixin):
        _auto_class = None
        model_input_names: tuple[str, ...] = ()
        num_frames = fps = None  # read by SmolVLM's template
        slice_mode = downsample_mode = None  # read by MiniCPM-V's processors

        def to_dict(self) -> dict[str, Any]:
            return dict(settings or {})

    return NoVideo()


def _open(directory: Path, config: Any) -> Any:
    from transformers import (
        PROCESSOR_MAPPING,
        AutoFeatureExtractor,
        AutoImageProcessor,
        AutoProcessor,
        AutoTokenizer,
    )

    # `get_attributes` and `from_args_and_dict` are undocumented; tried with transformers 5.24.
    options = {"trust_remote_code": False, "local_files_only": True}
    kind: Any = PROCESSOR_MAPPING.get(type(config), None)
    if kind is None or "video_processor" not in kind.get_attributes():
        return AutoProcessor.from_pretrained(directory, backend="pil", **options)
    values, rest = kind.get_processor_dict(directory, **options)
    settings = values.get("video_processor") or read_json(
        directory / "video_preprocessor_config.json"
    )
    parts = {
        "tokenizer": lambda: AutoTokenizer.from_pretrained(directory, **options),
        "image_processor": lambda: AutoImageProcessor.from_pretrained(
            directory, backend="pil", **options
        ),
        "feature_extractor": lambda: AutoFeatureExtractor.from_pretrained(directory, **options),
        "video_processor": lambda: no_video(settings),
    }
    arguments = [parts[name]() for name in kind.get_attributes()]
    rest = {name: value for name, value in rest.items() if name not in options}
    return without_video(kind).from_args_and_dict(arguments, values, **rest)


def _add_missing_settings(processor: Any, config: Any, directory: Path) -> None:
    """Add settings that processors saved before transformers 4.46 lack."""
    if getattr(processor, "num_query_tokens", 0) is None:  # BLIP-2
        processor.num_query_tokens = config.num_query_tokens
    if not hasattr(processor, "num_additional_image_tokens"):  # only LLaVA processors have it
        return
    tower = config.vision_config
    if processor.patch_size is None:
        processor.patch_size = tower.patch_size
    if processor.vision_feature_select_strategy is None:
        processor.vision_feature_select_strategy = config.vision_feature_select_strategy
    if "num_additional_image_tokens" not in read_json(directory / "processor_config.json"):
        processor.num_additional_image_tokens = int(tower.model_type == "clip_vision_model")
