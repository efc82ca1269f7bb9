"""Packed weights and the CPU decoder compute the same as the model itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.tiny import picture
from vqa_app.checkpoints.loader import load_model
from vqa_app.engine.cpu_decoder import CpuDecoder
from vqa_app.engine.cpu_weights import (
    PackedLinear,
    can_pack,
    joint_linear_function,
    make_column_major,
    optimize_layout,
    pack_weights,
)
from vqa_app.engine.kv_cache import KVCache
from vqa_app.engine.local import LocalEngine
from vqa_app.engine.protocol import GenerationOptions
from vqa_app.errors import UsageError
from vqa_app.prompts.conversation import Conversation
from vqa_app.torch_internals import has_bf16_kernels
from vqa_app.transformers_internals import cache_argument

needs_bf16_kernels = pytest.mark.skipif(
    not has_bf16_kernels(), reason="this CPU has no bf16 kernels"
)


@needs_bf16_kernels
@pytest.mark.parametrize("rows", [1, 7, 130])
def test_a_packed_layer_computes_the_same_as_the_layer(rows: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(96, 80).to(torch.bfloat16)
    x = torch.randn(2, rows, 96, dtype=torch.bfloat16)
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(layer)(x), layer(x), rtol=1e-2, atol=1e-2)


@needs_bf16_kernels
def test_every_linear_layer_of_a_bf16_model_is_packed(tiny_llava_dir: Path) -> None:
    model = load_model(str(tiny_llava_dir), dtype="bfloat16").model
    assert can_pack(model)
    count = sum(type(module) is nn.Linear for module in model.modules())
    assert pack_weights(model) == count > 20
    assert not any(type(module) is nn.Linear for module in model.modules())


def test_float32_weights_become_column_major_and_keep_their_values(tiny_llava_dir: Path) -> None:
    before = load_model(str(tiny_llava_dir), dtype="float32").model
    after = load_model(str(tiny_llava_dir), dtype="float32").model
    optimize_layout(after)
    assert after.lm_head.weight.t().is_contiguous()
    for (name, old), (_, new) in zip(
        before.named_parameters(), after.named_parameters(), strict=True
    ):
        assert torch.equal(old, new), name


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=needs_bf16_kernels)])
def test_a_model_inside_an_engine_cannot_be_saved(
    tiny_llava_dir: Path, tmp_path: Path, dtype: str
) -> None:
    """Packed weights would be missing from the files without an error."""
    loaded = load_model(str(tiny_llava_dir), dtype=dtype)
    LocalEngine(loaded).close()
    with pytest.raises(UsageError, match=r"inside a LocalEngine cannot be saved.*\n.*before"):
        loaded.model.save_pretrained(tmp_path / "saved")
    loaded = load_model(str(tiny_llava_dir), dtype=dtype)
    LocalEngine(loaded, fast_decoding=False).close()
    loaded.model.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("biases", [(True, True), (False, False), (True, False)], ids=str)
@pytest.mark.parametrize("column_major", [True, False])
def test_a_joint_product_equals_the_single_layers_and_leaves_them_usable(
    biases: tuple[bool, bool], column_major: bool
) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(12, width, bias=bias) for width, bias in zip((8, 20), biases, strict=True)]
    x = torch.randn(1, 12)
    with torch.inference_mode():
        expected = [layer(x) for layer in layers]
        if column_major:
            for layer in layers:
                make_column_major(layer)
        joint = joint_linear_function(layers)(x)
        torch.testing.assert_close(joint, torch.cat(expected, 1))
        for layer, before in zip(layers, expected, strict=True):
            torch.testing.assert_close(layer(x), before)


@needs_bf16_kernels
def test_greedy_answers_with_packed_weights_are_the_models_own(tiny_llava_dir: Path) -> None:
    """The random weights vary so much that no two tokens are close in bfloat16."""
    fast = LocalEngine(load_model(str(tiny_llava_dir), dtype="bfloat16"))
    slow = LocalEngine(load_model(str(tiny_llava_dir), dtype="bfloat16"), fast_decoding=False)
    options = GenerationOptions(max_new_tokens=8, temperature=0.0)
    texts = []
    for engine in (fast, slow):
        *_, answer = engine.stream(Conversation.ask("What is it?", [picture(0)]), options)
        texts.append(answer.text)
        engine.close()
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [("float32", None), ("bfloat16", None), ("float32", "4bit"), ("bfloat16", "8bit")],
)
def test_logits_of_the_cpu_decoder_are_the_models_own(
    tiny_llava_dir: Path, dtype: str, bits: str | None
) -> None:
    model = load_model(str(tiny_llava_dir), dtype=dtype, quantize=bits).model
    decoder = CpuDecoder.of(model)
    assert decoder is not None
    ids = torch.randint(8, 400, (1, 40), generator=torch.Generator().manual_seed(0))
    kv = KVCache.empty(2, transposed=decoder.transposes_keys)
    with torch.inference_mode():
        expected = model(input_ids=ids).logits[0, 10:]
        model(input_ids=ids[:, :10], **cache_argument(kv), use_cache=True)
        got = torch.cat([decoder.step([int(ids[0, n])], [kv], [n]) for n in range(10, 40)])
    exact = dtype == "float32" and bits is None
    close = {"rtol": 1e-4, "atol": 1e-4} if exact else {"rtol": 0.1, "atol": 0.25}
    torch.testing.assert_close(got, expected, **close)
