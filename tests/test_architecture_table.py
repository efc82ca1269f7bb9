"""The table of architectures in ARCHITECTURE.md says what the models allow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.architecture_table import table, table_on_page
from tests.architectures import ARCHITECTURES, CATALOGUE_ARCHITECTURES
from vqa_app.checkpoints.hub_models import CATALOGUE


@pytest.mark.slow
def test_the_table_is_that_of_the_models(tiny_checkpoint: Callable[[str], Path]) -> None:
    assert table_on_page() == table({name: tiny_checkpoint(name) for name in ARCHITECTURES}), (
        "Run `python -m tests.architecture_table`."
    )


def test_every_model_in_the_list_has_a_tiny_one_of_its_architecture() -> None:
    assert {entry.name for entry in CATALOGUE} == CATALOGUE_ARCHITECTURES.keys()
    assert set(CATALOGUE_ARCHITECTURES.values()) <= ARCHITECTURES.keys()
