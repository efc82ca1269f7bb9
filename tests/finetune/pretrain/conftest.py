"""A tokenizer that the tests of pre-training share: training one takes seconds."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from finetune.pretrain.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(scenes=40)
