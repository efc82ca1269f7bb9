"""Parts of transformers that change between releases, under their old and their new names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import logging
from transformers.modeling_outputs import BaseModelOutputWithPast

from tests.tiny import picture
from vqa_app import transformers_internals
from vqa_app.checkpoints.loader import load_model
from vqa_app.engine.local import LocalEngine
from vqa_app.engine.protocol import Answer, GenerationOptions
from vqa_app.prompts.conversation import Conversation
from vqa_app.transformers_internals import name_of_cache_argument


@dataclass
class OldOutput:
    """The fields of an output up to transformers 5.23."""

    last_hidden_state: object = None
    past_key_values: object = None


@dataclass
class NewOutput:
    """The fields of an output since transformers 5.24."""

    last_hidden_state: object = None
    cache: object = None


@pytest.fixture
def deprecations_allowed() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(before)


def test_the_argument_for_the_cache_has_the_name_of_the_installed_release() -> None:
    assert name_of_cache_argument(OldOutput) == "past_key_values"
    assert name_of_cache_argument(NewOutput) == "cache"


@pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning")
def test_answers_are_the_same_under_both_names_of_the_argument_for_the_cache(
    tiny_llava_dir: Path, monkeypatch: pytest.MonkeyPatch, deprecations_allowed: None
) -> None:
    """Transformers 5.24 takes both names, 5.40 the new one alone."""
    if name_of_cache_argument(BaseModelOutputWithPast) != "cache":
        pytest.skip("the installed transformers has the old name alone")
    options = GenerationOptions(max_new_tokens=6, temperature=0.0, repetition_penalty=1.3)
    answers = []
    for name in ("past_key_values", "cache"):
        monkeypatch.setattr(transformers_internals, "CACHE_ARGUMENT", name)
        engine = LocalEngine(
            load_model(str(tiny_llava_dir)), cache_bytes=1 << 20, fast_decoding=False
        )
        question = Conversation.ask("What is it?", [picture(1)])
        (*_, first), (*_, second) = (engine.stream(question, options) for _ in range(2))
        assert isinstance(first, Answer)
        assert isinstance(second, Answer)
        assert second.cached_tokens
        answers.append((first.text, second.text, second.cached_tokens))
        engine.close()
    assert answers[0] == answers[1]
