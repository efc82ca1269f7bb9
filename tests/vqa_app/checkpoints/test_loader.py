"""Load models and adapters, and reject files that do not match."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.tiny import edit_json, llm_config, make_tokenizer, picture, save, seeded, tiny_llava
from vqa_app.checkpoints import loader
from vqa_app.checkpoints.loader import LoadedModel, load_model
from vqa_app.checkpoints.manifest import Base, Manifest, write_manifest
from vqa_app.checkpoints.weights import fingerprint, model_files
from vqa_app.errors import ModelError, UsageError
from vqa_app.prompts.conversation import Conversation
from vqa_app.prompts.prompt import encode, prompt_hash

QUESTION = Conversation.ask("What is in the picture?", [picture(0)])


@pytest.fixture
def copy(tiny_llava_dir: Path, tmp_path: Path) -> Path:
    """Copy the tiny LLaVA, so that a test may modify it."""
    return Path(shutil.copytree(tiny_llava_dir, tmp_path / "copy"))


def change_weights(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    from safetensors.torch import load_file, save_file

    file = next(directory.glob("*model.safetensors"))
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


HEAD = "language_model.lm_head.weight"
"""Name of the output embedding in the file; in the model it is `lm_head.weight`."""


def logits(loaded: LoadedModel) -> Any:
    import torch

    with torch.inference_mode():
        inputs = encode(loaded.processor, QUESTION, answer_next=True).inputs
        return loaded.model(**inputs).logits


def loading_error(name: Path, **options: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load_model(str(name), **options)
    assert caught.value.hint
    assert len(str(caught.value).splitlines()) == 2
    return caught.value


# Whole models


def test_a_model_in_a_folder_is_loaded_for_inference(tiny_llava_dir: Path) -> None:
    loaded = load_model(str(tiny_llava_dir))
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert str(loaded.model.dtype) == "torch.float32"
    assert loaded.name == str(tiny_llava_dir.resolve())
    assert (loaded.adapter, loaded.quantization) == (None, None)


def test_the_pooling_head_of_siglip_is_not_run(tiny_llava_dir: Path) -> None:
    loaded = load_model(str(tiny_llava_dir))
    pooled: list[Any] = []
    loaded.model.model.vision_tower.head.register_forward_hook(lambda *_: pooled.append(1))
    logits(loaded)
    assert not pooled


def test_loading_prints_nothing(tiny_llava_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_model(str(tiny_llava_dir))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_can_be_chosen(tiny_llava_dir: Path, dtype: str) -> None:
    assert str(load_model(str(tiny_llava_dir), dtype=dtype).model.dtype) == f"torch.{dtype}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int4"}, "int4"),
        ({"quantize": "2bit"}, "2bit"),
        ({"revision": "main"}, "no revisions"),
        ({"device": "abacus"}, "no device 'abacus'"),
    ],
)
def test_invalid_arguments_are_rejected(
    tiny_llava_dir: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        load_model(str(tiny_llava_dir), **options)


def test_an_unusable_device_is_rejected(tiny_llava_dir: Path) -> None:
    assert "'meta' cannot be used" in loading_error(tiny_llava_dir, device="meta").problem


def test_the_fingerprint_does_not_depend_on_how_weights_are_split(
    tiny_llava_dir: Path, copy: Path
) -> None:
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(copy)
    (copy / "model.safetensors").unlink()
    model.save_pretrained(copy, max_shard_size="100KB")
    assert len(model_files(copy)) > 1
    whole = load_model(str(tiny_llava_dir)).fingerprint
    assert load_model(str(copy)).fingerprint == whole
    model.lm_head.weight.data += 1e-3
    model.save_pretrained(copy, max_shard_size="100KB")
    assert fingerprint(model_files(copy)) != whole


def test_the_error_for_a_missing_weight_names_it(copy: Path) -> None:
    change_weights(copy, lambda tensors: tensors.pop(HEAD))
    assert "lacks the weight lm_head.weight" in loading_error(copy).problem


def test_the_error_for_an_unexpected_weight_names_it(copy: Path) -> None:
    import torch

    change_weights(copy, lambda tensors: tensors.update(surprise=torch.ones(2)))
    assert "surprise" in loading_error(copy).problem


def test_a_weight_of_the_wrong_shape_is_rejected(copy: Path) -> None:
    import torch

    change_weights(copy, lambda tensors: tensors.update({HEAD: torch.ones(3, 32)}))
    assert str(copy) in loading_error(copy).problem


@pytest.mark.parametrize("change", [lambda data: data[:-100], lambda data: data + b"more"])
def test_the_error_for_a_truncated_or_overlong_file_names_it(
    copy: Path, change: Callable[[bytes], bytes]
) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(change(file.read_bytes()))
    assert "model.safetensors is not a valid safetensors file" in loading_error(copy).problem


def test_the_error_for_a_missing_shard_names_it(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert "model-00002-of-00002.safetensors is missing" in loading_error(copy).problem


@pytest.mark.parametrize("text", ['{"weight_map": {"a": "mod', "{}", '{"weight_map": {"a": 1}}'])
def test_the_error_for_a_damaged_index_names_it(copy: Path, text: str) -> None:
    (copy / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json is damaged" in loading_error(copy).problem


def test_pickle_files_are_rejected(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert "pickle" in loading_error(copy).problem


def test_code_from_a_repository_is_never_run(copy: Path) -> None:
    (copy / "evil.py").write_text("raise SystemExit('run')")
    edit_json(copy / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Config"})
    assert "needs Python code from its own repository" in loading_error(copy).problem


def test_the_error_for_an_unknown_architecture_names_it(copy: Path) -> None:
    edit_json(copy / "config.json", model_type="llava99")
    assert "'llava99'" in loading_error(copy).problem


def test_a_language_model_is_rejected(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    words = make_tokenizer()
    config = AutoConfig.for_model(**llm_config("llama", len(words)))
    save(seeded(AutoModelForCausalLM.from_config, config), words, tmp_path)
    assert "cannot answer questions about pictures" in loading_error(tmp_path).problem


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("text_config", {"hidden_size": "abc"}, "expected int, got str"),
        ("text_config", {"num_attention_heads": 5}, "not a multiple"),
        ("text_config", {"vocab_size": -1}, "Could not build a model"),
        ("vision_config", {"patch_size": 0}, "Could not build a model"),
        ("", {"text_config": "x"}, "expected dict, got str"),
        ("", {"image_token_index": 99999}, " 99999, but its processor uses"),
        ("", {"vision_feature_layer": -99}, "but its encoder has 2 layers"),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_impossible_values_in_a_config_are_reported(
    copy: Path, part: str, values: dict[str, Any], message: str
) -> None:
    config = json.loads((copy / "config.json").read_text())
    (config[part] if part else config).update(values)
    (copy / "config.json").write_text(json.dumps(config))
    assert message in loading_error(copy).problem


def test_a_config_of_a_far_larger_model_is_rejected_before_loading(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty text config is the default Llama, with 7 billion parameters."""
    monkeypatch.setattr("vqa_app.checkpoints.loader._from_pretrained", None)  # must not be called
    edit_json(copy / "config.json", text_config={})
    assert re.search(r"describes 6,\d+,\d+,\d+ parameters", loading_error(copy).problem)


def test_a_damaged_generation_config_is_reported(copy: Path) -> None:
    """Without it a model would lose its end tokens and never stop."""
    (copy / "generation_config.json").write_text('{"eos_token_id": ')
    assert "generation_config.json cannot be read" in loading_error(copy).problem


def test_an_empty_folder_is_rejected(tmp_path: Path) -> None:
    assert "no config.json" in loading_error(tmp_path).problem


def test_a_model_without_chat_template_is_rejected(copy: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    assert "no chat template" in loading_error(copy).problem


def test_a_model_without_tokenizer_is_rejected(copy: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    assert "processor" in loading_error(copy).problem


def test_insufficient_memory_is_reported_before_loading(
    tiny_llava_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    free = SimpleNamespace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    error = loading_error(tiny_llava_dir)
    assert "kB of memory" in error.problem
    assert "--quantize 4bit" in error.hint


@pytest.mark.parametrize("device", ["cuda:1", "mps"])
def test_weights_are_loaded_directly_to_a_gpu(
    tiny_llava_dir: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """Otherwise the whole model would have to fit in CPU memory first."""
    import torch

    given: dict[str, Any] = {}

    def load(source: object, config: object, options: dict[str, Any]) -> None:
        given.update(options)
        raise RuntimeError("no GPU to load to")

    monkeypatch.setattr(loader, "_from_pretrained", load)
    with pytest.raises(RuntimeError, match="no GPU"):
        load_model(str(tiny_llava_dir))
    assert given.keys() == {"dtype"}
    monkeypatch.setattr(loader, "choose_device", lambda name: torch.device(device))
    monkeypatch.setattr(loader, "choose_dtype", lambda *_, **__: torch.bfloat16)
    monkeypatch.setattr(loader, "check_memory", lambda *_: None)
    with pytest.raises(RuntimeError, match="no GPU"):
        load_model(str(tiny_llava_dir))
    assert given["device_map"] == {"": torch.device(device)}


def test_running_out_of_memory_while_loading_is_reported(
    tiny_llava_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForImageTextToText

    def raise_out_of_memory(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", raise_out_of_memory)
    error = loading_error(tiny_llava_dir)
    assert "Not enough memory to load" in error.problem
    assert "--quantize 4bit" in error.hint


@pytest.mark.parametrize("missing", [1, 3])
def test_settings_missing_from_an_old_processor_come_from_the_config(
    tmp_path: Path, one_thread: None, missing: int
) -> None:
    import torch

    new = tiny_llava(tmp_path / "new", "clip")
    old = Path(shutil.copytree(new, tmp_path / "old"))
    names = ("num_additional_image_tokens", "patch_size", "vision_feature_select_strategy")
    edit_json(old / "processor_config.json", **dict.fromkeys(names[:missing]))
    assert torch.equal(logits(load_model(str(old))), logits(load_model(str(new))))


# Adapters


def make_lora(base: Path, out: Path, base_name: str | None = None, **changes: Any) -> Path:
    """Save a LoRA with the projector, as PEFT does, with weights that change the logits."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(base)
    settings: dict[str, Any] = {
        "target_modules": r".*language_model.*\.(q_proj|v_proj)",
        "modules_to_save": ["multi_modal_projector"],
    }
    config = LoraConfig(r=2, **(settings | changes))
    adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    adapted.peft_config["default"].base_model_name_or_path = base_name or str(base)
    adapted.save_pretrained(
        out, save_embedding_layers=False
    )  # otherwise PEFT sends a request to the hub
    return out


@pytest.fixture(scope="module")
def lora(tiny_llava_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lora(tiny_llava_dir, tmp_path_factory.mktemp("adapters") / "lora")


def plain_logits(base: Path, adapter: Path) -> Any:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(base)
    model = PeftModel.from_pretrained(model, adapter).eval()
    inputs = encode(AutoProcessor.from_pretrained(base), QUESTION, answer_next=True).inputs
    with torch.inference_mode():
        return model(**inputs).logits


def make_run(directory: Path, base: Path, kind: Any) -> Path:
    """Add a manifest to a folder, as if it was a run of ours."""
    loaded = load_model(str(base))
    manifest = Manifest(
        kind=kind,
        base=Base(str(base), loaded.fingerprint),
        prompt_hash=prompt_hash(loaded.processor),
    )
    write_manifest(directory, manifest)
    return directory


def test_an_adapter_gives_the_same_logits_as_with_plain_peft(
    tiny_llava_dir: Path, lora: Path
) -> None:
    import torch

    base = load_model(str(tiny_llava_dir))
    loaded = load_model(str(tiny_llava_dir), adapter=str(lora))
    expected = plain_logits(tiny_llava_dir, lora)
    assert torch.allclose(logits(loaded), expected, atol=1e-4)
    assert not torch.allclose(logits(base), expected, atol=1e-2)
    assert loaded.adapter == str(lora)
    assert loaded.fingerprint != base.fingerprint
    assert type(loaded.model) is type(base.model)


def test_an_adapter_can_stay_unmerged(tiny_llava_dir: Path, lora: Path) -> None:
    import torch

    loaded = load_model(str(tiny_llava_dir), adapter=str(lora), merge=False)
    assert hasattr(loaded.model, "merge_and_unload")
    assert torch.equal(logits(loaded), plain_logits(tiny_llava_dir, lora))


def test_an_adapters_folder_is_loaded_with_its_base(tiny_llava_dir: Path, lora: Path) -> None:
    import torch

    alone = load_model(str(lora))
    assert alone.adapter is None
    assert alone.name == str(lora.resolve())
    both = load_model(str(tiny_llava_dir), adapter=str(lora))
    assert torch.equal(logits(alone), logits(both))
    assert alone.fingerprint == both.fingerprint


def test_loading_an_adapter_prints_nothing(lora: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_model(str(lora))
    assert capfd.readouterr() == ("", "")


def test_a_peft_adapter_for_another_model_is_rejected_with_both_names(
    tiny_llava_dir: Path, tmp_path: Path
) -> None:
    adapter = make_lora(tiny_llava_dir, tmp_path / "lora", "llava-hf/llava-1.5-7b-hf")
    problem = loading_error(tiny_llava_dir, adapter=str(adapter)).problem
    assert "llava-hf/llava-1.5-7b-hf" in problem
    assert str(tiny_llava_dir) in problem


def test_a_run_on_another_base_is_rejected_with_both_names(
    tiny_llava_dir: Path, lora: Path, copy: Path, tmp_path: Path
) -> None:
    run = make_run(Path(shutil.copytree(lora, tmp_path / "run")), tiny_llava_dir, "lora")
    assert load_model(str(run)).name == str(run)
    change_weights(copy, lambda tensors: tensors[HEAD].add_(1))
    problem = loading_error(copy, adapter=str(run)).problem
    assert str(tiny_llava_dir) in problem
    assert str(copy) in problem


def test_a_base_that_changed_since_training_is_rejected(
    tiny_llava_dir: Path, lora: Path, copy: Path, tmp_path: Path
) -> None:
    run = make_run(Path(shutil.copytree(lora, tmp_path / "run")), copy, "lora")
    change_weights(copy, lambda tensors: tensors[HEAD].add_(1))
    assert "has other weights" in loading_error(run).problem


def test_the_error_for_a_missing_base_names_the_adapter(
    tiny_llava_dir: Path, tmp_path: Path
) -> None:
    adapter = make_lora(tiny_llava_dir, tmp_path / "lora", "/no/such/base")
    problem = loading_error(adapter).problem
    assert str(adapter) in problem
    assert "/no/such/base" in problem


def test_missing_and_unexpected_weights_of_an_adapter_are_rejected(
    tiny_llava_dir: Path, lora: Path, tmp_path: Path
) -> None:
    import torch

    missing = Path(shutil.copytree(lora, tmp_path / "missing"))
    change_weights(missing, lambda tensors: tensors.pop(sorted(tensors)[0]))
    assert "lacks" in loading_error(missing).problem
    unexpected = Path(shutil.copytree(lora, tmp_path / "unexpected"))
    extra = "base_model.model.model.language_model.layers.9.self_attn.q_proj.lora_A.weight"
    change_weights(unexpected, lambda tensors: tensors.update({extra: torch.ones(2, 32)}))
    assert "layers.9" in loading_error(unexpected).problem


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base_model_name_or_path": 5}, "does not name the model"),
        ({"revision": 5}, "does not name the model"),
        ({"target_modules": 5}, "does not match the model"),
    ],
)
def test_invalid_values_in_an_adapters_config_are_reported(
    lora: Path, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    copy = Path(shutil.copytree(lora, tmp_path / "copy"))
    edit_json(copy / "adapter_config.json", **values)
    assert message in loading_error(copy).problem


def test_an_adapter_for_wider_layers_is_rejected(tmp_path: Path, lora: Path) -> None:
    wide = tiny_llava(tmp_path / "wide", hidden_size=48, head_dim=24)
    edit = Path(shutil.copytree(lora, tmp_path / "adapter"))
    edit_json(edit / "adapter_config.json", base_model_name_or_path=str(wide))
    assert "does not match" in loading_error(edit).problem


def test_an_adapter_in_a_pickle_file_is_rejected(lora: Path, tmp_path: Path) -> None:
    pickled = Path(shutil.copytree(lora, tmp_path / "pickled"))
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    assert "pickle" in str(loading_error(pickled))


def test_a_whole_model_is_rejected_as_an_adapter(tiny_llava_dir: Path) -> None:
    assert "not an adapter" in loading_error(tiny_llava_dir, adapter=str(tiny_llava_dir)).problem


def test_an_adapter_on_an_adapter_is_rejected(lora: Path) -> None:
    with pytest.raises(UsageError, match="cannot be added to it"):
        load_model(str(lora), adapter=str(lora))


def make_projector(base: Path, out: Path) -> Path:
    import torch
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(2)
    tensors = {
        name: torch.randn(value.shape, generator=generator)
        for name, value in load_file(base / "model.safetensors").items()
        if "projector" in name
    }
    out.mkdir()
    names = {name: f"model.{name}" for name in tensors if not name.startswith("model.")}
    tensors = {names.get(name, name): value for name, value in tensors.items()}
    save_file(tensors, out / "projector.safetensors")
    return make_run(out, base, "projector")


def test_a_projector_is_loaded_into_its_base(tiny_llava_dir: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    run = make_projector(tiny_llava_dir, tmp_path / "run")
    loaded = load_model(str(run))
    for name, value in load_file(run / "projector.safetensors").items():
        assert torch.equal(loaded.model.get_parameter(name), value)
    assert not torch.allclose(logits(loaded), logits(load_model(str(tiny_llava_dir))), atol=1e-2)
    both = load_model(str(tiny_llava_dir), adapter=str(run))
    assert torch.equal(logits(both), logits(loaded))


@pytest.mark.parametrize("make", [make_lora, make_projector])
def test_the_error_for_a_truncated_adapter_names_it(
    tiny_llava_dir: Path, tmp_path: Path, make: Callable[[Path, Path], Path]
) -> None:
    adapter = make(tiny_llava_dir, tmp_path / "adapter")
    file = next(adapter.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    problem = loading_error(tiny_llava_dir, adapter=str(adapter)).problem
    assert str(adapter) in problem
    assert "are damaged or incomplete" in problem


def test_an_incomplete_projector_is_rejected(tiny_llava_dir: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    run = make_projector(tiny_llava_dir, tmp_path / "run")
    tensors = load_file(run / "projector.safetensors")
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, run / "projector.safetensors")
    assert "linear_1.bias" in loading_error(run).problem


@pytest.mark.parametrize("kind", ["full", "merged"])
def test_a_run_with_a_whole_model_needs_no_base(copy: Path, kind: str) -> None:
    make_run(copy, copy, kind)
    assert load_model(str(copy)).name == str(copy)


def test_a_changed_chat_template_causes_a_warning(
    tiny_llava_dir: Path, lora: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(Path(shutil.copytree(lora, tmp_path / "run")), tiny_llava_dir, "lora")
    load_model(str(run))
    assert not caplog.records
    edit_json(run / "manifest.json", prompt_hash="another")
    load_model(str(run))
    assert "another chat template" in caplog.text


def test_a_processor_that_needs_a_package_names_it(
    tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """LFM2-VL's image processor has no version on Pillow, except the one of our tests."""
    from transformers import IMAGE_PROCESSOR_MAPPING, Lfm2VlConfig
    from transformers.utils import is_torchvision_available

    if is_torchvision_available():
        pytest.skip("torchvision is installed")
    directory = tiny_checkpoint("lfm2-vl")
    monkeypatch.delitem(IMAGE_PROCESSOR_MAPPING._extra_content, Lfm2VlConfig)
    error = loading_error(directory)
    assert "needs torchvision, which is not installed" in error.problem
    assert "pip install torchvision" in error.hint
