"""Models in 4 and 8 bits on a CPU: loading, memory, the copy on disk, adapters."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.tiny import tiny_llava
from tests.vqa_app.checkpoints.test_loader import HEAD, change_weights, logits, make_lora
from tests.vqa_app.engine.test_batched import peak_bytes
from vqa_app.checkpoints import cpu_quantization
from vqa_app.checkpoints.loader import load_config, load_model
from vqa_app.checkpoints.source import Source
from vqa_app.checkpoints.validation import skeleton
from vqa_app.errors import ModelError, UsageError
from vqa_app.models.anatomy import anatomy
from vqa_app.models.quantized_linear import QuantizedLinear, count_parameters

BITS = ["4bit", "8bit"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of quantised copies, which is another one for each test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "vqa-app" / "quantized"


def test_no_home_folder_is_needed(
    tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where copies would be kept."""

    def no_home(_: str) -> Path:
        raise UsageError("This user has no home folder.")

    monkeypatch.setattr(cpu_quantization, "KEPT_WEIGHTS", 0)
    monkeypatch.setattr(cpu_quantization, "user_cache", no_home)
    loaded = load_model(str(tiny_checkpoint("llava-siglip")), quantize="8bit")
    assert quantized_names(loaded.model)


@pytest.fixture
def keeps_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_quantization, "KEPT_WEIGHTS", 0)


def quantized_names(model: Any) -> set[str]:
    return {name for name, one in model.named_modules() if isinstance(one, QuantizedLinear)}


def model_bytes(model: Any) -> int:
    buffers = [one.buffers() for one in model.modules() if isinstance(one, QuantizedLinear)]
    tensors = [*model.parameters(), *(tensor for group in buffers for tensor in group)]
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


@pytest.mark.parametrize(
    ("name", "bits", "similarity"),
    [
        ("llava-siglip", "4bit", 0.8),
        ("llava-siglip", "8bit", 0.998),
        ("qwen2-vl", "8bit", 0.998),
        ("mllama", "4bit", 0.8),
    ],
)
def test_the_language_model_is_quantised_and_computes_nearly_the_same(
    name: str, bits: str, similarity: float, tiny_checkpoint: Callable[[str], Path]
) -> None:
    directory = tiny_checkpoint(name)
    loaded, whole = load_model(str(directory), quantize=bits), load_model(str(directory))
    assert loaded.quantization == bits
    parts = anatomy(whole.model)
    layers = {one for one, module in whole.model.named_modules() if type(module) is nn.Linear}
    encoder = tuple(f"{one}." for one in (parts.encoder, *parts.projector))
    assert quantized_names(loaded.model) == {
        one for one in layers if not f"{one}.".startswith(encoder)
    }
    assert loaded.model.get_submodule(parts.head).bits == 8
    near = F.cosine_similarity(logits(loaded).float(), logits(whole).float(), dim=-1)
    assert near.mean() > similarity  # random weights amplify rounding errors


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_predicted_memory_and_parameters_are_those_of_the_loaded_model(
    tmp_path: Path, one_thread: None, bits: str, tied: bool
) -> None:
    directory = tiny_llava(tmp_path, tie_word_embeddings=tied)
    model = load_model(str(directory), quantize=bits).model
    whole = skeleton("tiny", load_config(Source("tiny", directory)))
    predicted = cpu_quantization.quantized_model_bytes(
        whole, torch.float32, 4 if bits == "4bit" else 8
    )
    assert predicted == model_bytes(model)
    assert count_parameters(model) == whole.num_parameters()


def test_too_little_memory_for_the_quantised_weights_is_reported_before_loading(
    tiny_llava_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vqa_app.checkpoints import memory

    needed = model_bytes(load_model(str(tiny_llava_dir), quantize="4bit").model)
    monkeypatch.setattr(memory, "free_memory", lambda _: needed)
    load_model(str(tiny_llava_dir), quantize="4bit")
    monkeypatch.setattr(memory, "free_memory", lambda _: needed - 1)
    with pytest.raises(ModelError, match=r"needs .* of memory"):
        load_model(str(tiny_llava_dir), quantize="4bit")


@pytest.mark.parametrize("bits", BITS)
def test_loading_takes_no_more_than_the_result_and_what_one_layer_needs(
    tmp_path: Path, one_thread: None, bits: str
) -> None:
    """So that a model whose whole weights do not fit can be loaded."""
    directory = tiny_llava(
        tmp_path, hidden_size=256, intermediate_size=512, head_dim=64, num_hidden_layers=8
    )
    models: list[Any] = []
    peak = peak_bytes(lambda: models.append(load_model(str(directory), quantize=bits).model))
    layer = 4 * 256 * 512
    assert peak < model_bytes(models[0]) + 6 * layer
    assert peak < 0.7 * model_bytes(load_model(str(directory)).model)


def test_layers_that_the_kernels_cannot_read_stay_whole(
    tmp_path: Path, one_thread: None, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tiny_llava(tmp_path, intermediate_size=40)
    loaded = load_model(str(directory), quantize="4bit")
    for layer in loaded.model.model.language_model.layers:
        assert type(layer.mlp.down_proj) is nn.Linear
        assert layer.mlp.up_proj.bits == 8  # 40 outputs are no multiple of 16
        assert layer.self_attn.q_proj.bits == 4
    assert "% of the weights of" in caplog.text
    near = F.cosine_similarity(logits(loaded), logits(load_model(str(directory))), dim=-1)
    assert near.mean() > 0.85


def test_a_model_of_which_nothing_can_be_quantised_is_refused(
    tmp_path: Path, one_thread: None
) -> None:
    directory = tiny_llava(tmp_path, hidden_size=40, intermediate_size=40, head_dim=20)
    with pytest.raises(ModelError, match=r"No layer of .* can be quantised"):
        load_model(str(directory), quantize="4bit")


# The copy on disk


@pytest.fixture
def kept(
    tmp_path: Path, one_thread: None, cache: Path, keeps_copies: None
) -> tuple[Path, Path, torch.Tensor]:
    """Return a model, its quantised copy, and the logits of that."""
    directory = tiny_llava(tmp_path / "model")
    first = logits(load_model(str(directory), quantize="4bit"))
    (copy,) = cache.iterdir()
    return directory, copy, first


def test_the_copy_on_disk_is_loaded_instead_of_quantising_again(
    kept: tuple[Path, Path, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, _, first = kept

    def refuse(*_: Any) -> None:
        raise AssertionError("quantised again")

    with monkeypatch.context() as patch:
        patch.setattr(cpu_quantization, "quantize", refuse)
        again = load_model(str(directory), quantize="4bit")
    assert torch.equal(logits(again), first)


@pytest.mark.parametrize("damage", ["cut", "garbage", "missing"])
def test_a_damaged_copy_is_made_again(
    kept: tuple[Path, Path, torch.Tensor], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    directory, copy, first = kept
    file = copy / "model.safetensors"
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:-100] if damage == "cut" else b"x" * len(content))
    assert torch.equal(logits(load_model(str(directory), quantize="4bit")), first)
    assert "is made again" in caplog.text
    assert file.read_bytes() == content


def test_other_weights_and_precisions_get_copies_of_their_own(
    kept: tuple[Path, Path, torch.Tensor], cache: Path
) -> None:
    directory, _, first = kept
    for options in ({"quantize": "8bit"}, {"quantize": "4bit", "dtype": "bfloat16"}):
        load_model(str(directory), **options)
    change_weights(directory, lambda tensors: tensors[HEAD].mul_(2))
    assert not torch.equal(logits(load_model(str(directory), quantize="4bit")), first)
    assert len([*cache.iterdir()]) == 4


def test_small_models_and_full_disks_leave_no_copy(
    tiny_llava_dir: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_model(str(tiny_llava_dir), quantize="4bit")
    monkeypatch.setattr(cpu_quantization, "KEPT_WEIGHTS", 0)
    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(tiny_llava_dir)._replace(free=1000)
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        load_model(str(tiny_llava_dir), quantize="4bit")
    assert not cache.exists() or not [*cache.iterdir()]


def test_a_copy_that_cannot_be_written_is_done_without(
    tiny_llava_dir: Path, cache: Path, keeps_copies: None, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.parent.mkdir(exist_ok=True)
    cache.parent.write_text("a file where a folder is needed", encoding="utf-8")
    assert load_model(str(tiny_llava_dir), quantize="4bit").quantization == "4bit"
    assert "is not kept in" in caplog.text


# Adapters


def test_lora_works_on_a_quantised_base(tiny_llava_dir: Path, tmp_path: Path) -> None:
    adapter = make_lora(tiny_llava_dir, tmp_path / "lora")
    loaded = load_model(str(tiny_llava_dir), adapter=str(adapter), quantize="4bit")
    assert quantized_names(loaded.model)
    whole = logits(load_model(str(tiny_llava_dir), adapter=str(adapter)))
    near = F.cosine_similarity(logits(loaded), whole, dim=-1)
    assert near.mean() > 0.8
    base = logits(load_model(str(tiny_llava_dir), quantize="4bit"))
    assert F.cosine_similarity(logits(loaded), base, dim=-1).mean() < 0.6


def test_an_adapter_that_needs_whole_weights_is_refused(
    tiny_llava_dir: Path, tmp_path: Path
) -> None:
    adapter = make_lora(tiny_llava_dir, tmp_path / "lora", use_dora=True)
    with pytest.raises(ModelError, match="has the type DORA") as caught:
        load_model(str(tiny_llava_dir), adapter=str(adapter), quantize="8bit")
    assert "--quantize" in caught.value.hint


def test_an_adapter_may_bring_a_head_of_its_own(tiny_llava_dir: Path, tmp_path: Path) -> None:
    adapter = make_lora(
        tiny_llava_dir, tmp_path / "lora", modules_to_save=["multi_modal_projector", "lm_head"]
    )
    loaded = load_model(str(tiny_llava_dir), adapter=str(adapter), quantize="8bit")
    whole = logits(load_model(str(tiny_llava_dir), adapter=str(adapter)))
    assert F.cosine_similarity(logits(loaded), whole, dim=-1).mean() > 0.998


def test_a_run_of_qlora_gets_the_base_that_it_was_trained_on(
    tiny_llava_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vqa_app.checkpoints import loader

    adapter = make_lora(tiny_llava_dir, tmp_path / "lora")
    monkeypatch.setattr(
        loader, "quantization_of", lambda folder: "4bit" if folder == adapter else None
    )
    asked: list[str] = []

    def refuse(*arguments: Any) -> None:
        asked.append("bitsandbytes")
        raise ModelError("no bitsandbytes", "")

    monkeypatch.setattr(loader, "_bitsandbytes_options", refuse)
    for options in ({"name": str(adapter)}, {"name": str(tiny_llava_dir), "adapter": str(adapter)}):
        with pytest.raises(ModelError, match="no bitsandbytes"):
            load_model(**options, quantize="4bit")
    assert len(asked) == 2
