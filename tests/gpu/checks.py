"""What is checked on a GPU; each check runs in a process of its own and returns what it found.

The built-in model and generated data: nothing is downloaded.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Setup:
    """Where the checks run."""

    device: str
    """`cuda`, `mps` or `cpu`."""
    folder: Path
    """Shared by all checks: the data, and the runs that later checks use."""
    steps: int = 6
    """Training steps of a check."""

    @property
    def on_cuda(self) -> bool:
        """Whether the device is an NVIDIA GPU."""
        return self.device.startswith("cuda")

    @property
    def data(self) -> Path:
        """The generated data."""
        return self.folder / "data" / "data.json"

    @property
    def run(self) -> Path:
        """The run of `train_lora`."""
        return self.folder / "lora"


@dataclass(frozen=True)
class Check:
    """A check."""

    title: str
    run: Callable[[Setup], str]
    """Returns what it found, in a few words; any exception is a failure."""
    needs: tuple[str, ...] = ()
    """Names of the checks whose results it uses."""
    impossible: Callable[[Setup], str] = lambda _: ""
    """Returns why it cannot run here, or an empty string."""


def _make_data(setup: Setup) -> None:
    from tests.finetune.training_data import write_data

    if not setup.data.exists():
        write_data(setup.data.parent, pictures=8, text_rows=2)


def _conversation(text: str) -> Any:
    from PIL import Image

    from vqa_app import Conversation, open_picture

    picture = open_picture(Image.new("RGB", (64, 48), "red"), name="red.png")
    return Conversation.ask(text, [picture])


def _memory(setup: Setup) -> str:
    if not setup.on_cuda:
        return ""
    import torch

    from vqa_app.files import format_bytes

    return f", at most {format_bytes(torch.cuda.max_memory_allocated())} on the GPU"


def load(setup: Setup) -> str:
    """Load the model in each precision, and compare its logits with those on the CPU in fp32."""
    import torch

    from vqa_app import load_model
    from vqa_app.prompts.prompt import encode

    def log_probabilities(device: str, dtype: str) -> torch.Tensor:
        loaded = load_model("builtin", device=device, dtype=dtype)
        prompt = encode(loaded.processor, _conversation("What is it?"), answer_next=True)
        model = loaded.model
        with torch.inference_mode():
            inputs = {
                name: value.to(model.device, model.dtype if value.is_floating_point() else None)
                for name, value in prompt.inputs.items()
            }
            return model(**inputs).logits[0, -1].float().log_softmax(-1).cpu()

    expected = log_probabilities("cpu", "float32")
    found = []
    for dtype, allowed in (("float32", 0.05), ("bfloat16", 0.5), ("float16", 0.2)):
        actual = log_probabilities(setup.device, dtype)
        likely = expected > math.log(1e-3)
        difference = float((actual - expected)[likely].abs().max())
        if not difference <= allowed:  # NaN, too
            raise AssertionError(f"{dtype}: log-probabilities differ by {difference:.2g} nats")
        found.append(f"{dtype} {difference:.1g}")
    return f"nats from the CPU's fp32: {', '.join(found)}{_memory(setup)}"


def chat(setup: Setup) -> str:
    """Ask, ask again, and compute an attention map."""
    return _chat(setup, None)


def chat_in_4_bits(setup: Setup) -> str:
    """Chat with a 4-bit model."""
    return _chat(setup, "4bit")


def chat_in_8_bits(setup: Setup) -> str:
    """Chat with an 8-bit model."""
    return _chat(setup, "8bit")


def many_at_once(setup: Setup) -> str:
    """Answer questions at once, with captured graphs on CUDA, as one by one without them."""
    from concurrent.futures import ThreadPoolExecutor

    from vqa_app import Answer, GenerationOptions, LocalEngine, load_model

    texts = ("What is it?", "Which colour is it?", "Is it red?", "Describe the picture.")
    asked = [_conversation(text) for text in texts * 2]

    def answers(engine: LocalEngine, threads: int) -> list[str]:
        options = GenerationOptions(max_new_tokens=24, temperature=0.0)

        def answer(conversation: Any) -> str:
            *_, last = engine.stream(conversation, options)
            assert isinstance(last, Answer)
            return last.text

        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(answer, asked))

    plain = LocalEngine(
        load_model("builtin", device=setup.device, dtype="float32"), fast_decoding=False
    )
    expected = answers(plain, 1)
    plain.close()
    engine = LocalEngine(load_model("builtin", device=setup.device, dtype="float32"))
    for threads in (len(asked), 1, 3):
        found = answers(engine, threads)
        assert found == expected, f"{threads} at once: {found} instead of {expected}"
    decoder = engine._runtime._static_decoder
    graphs = 0 if decoder is None else decoder.captured_graphs
    assert graphs or not setup.on_cuda, "no graph was captured"
    engine.close()
    return f"{len(asked)} at once as one by one; {graphs} captured graphs{_memory(setup)}"


def _chat(setup: Setup, quantize: str | None) -> str:
    from vqa_app import Answer, LocalEngine, Message, load_model

    engine = LocalEngine(load_model("builtin", device=setup.device, quantize=quantize))
    conversation = _conversation("Which colour has the picture?")
    *_, first = engine.stream(conversation)
    assert isinstance(first, Answer)
    asked = conversation.then(Message.assistant(first.text), Message.user("Is it red?"))
    *_, second = engine.stream(asked)
    assert isinstance(second, Answer)
    assert first.text, "the answer is empty"
    assert second.cached_tokens >= first.image_tokens, "the prompt was read again"
    (grid,) = engine.attention_map(conversation, first.text).maps
    assert math.isclose(float(grid[0].sum()), 1.0, abs_tol=1e-2), "the map does not sum to 1"
    dtype = engine.info.quantization or engine.info.dtype
    engine.close()
    return f"{dtype}: {first.text!r}, {second.text!r}{_memory(setup)}"


def _train(setup: Setup, name: str, **options: Any) -> str:
    from finetune import FinetuneConfig, train

    _make_data(setup)
    run = setup.folder / name
    config = {
        "data": str(setup.data),
        "out": str(run),
        "feature_dir": str(setup.folder / "features"),
        "device": setup.device,
        "max_steps": setup.steps,
        "batch_size": 4,
        "eval_fraction": 0,
        **options,
    }
    result = train(FinetuneConfig(**config))
    assert result.finished, "the run is not finished"
    return _losses(run) + _memory(setup)


def _losses(run: Path) -> str:
    from tests.finetune.training_data import metrics

    losses = [line["loss"] for line in metrics(run) if "loss" in line]
    assert all(map(math.isfinite, losses)), f"the loss is not finite: {losses}"
    assert losses[-1] < losses[0], f"the loss does not fall: {losses}"
    return f"loss {losses[0]:.2f} to {losses[-1]:.2f}"


def train_lora(setup: Setup) -> str:
    """Train with LoRA in bf16, or in what an older GPU computes in."""
    import torch

    from vqa_app.devices import computes_in_bfloat16

    bf16 = not setup.on_cuda or computes_in_bfloat16(torch.device(setup.device))
    precision = "bf16" if bf16 else "auto"
    return f"{precision}: " + _train(setup, "lora", stage="lora", precision=precision)


def train_in_fp16(setup: Setup) -> str:
    """Train in fp16, whose first steps are skipped until the loss is scaled so that it fits."""
    return _train(setup, "fp16", stage="lora", precision="fp16", max_steps=2 * setup.steps)


def train_qlora(setup: Setup) -> str:
    """Train with LoRA on a 4-bit base."""
    return _train(setup, "qlora", stage="qlora")


def train_full(setup: Setup) -> str:
    """Train the whole language model, with activations computed again in the backward pass."""
    return _train(setup, "full", stage="full", gradient_checkpointing=True)


def train_in_8_bits(setup: Setup) -> str:
    """Train with the 8-bit optimiser."""
    return _train(setup, "adamw-8bit", stage="lora", optimizer="adamw-8bit")


def evaluate_run(setup: Setup) -> str:
    """Evaluate the LoRA run: batched answers, losses, image gain."""
    from finetune import evaluate
    from vqa_app import load_model

    loaded = load_model(setup.run, device=setup.device)
    result = evaluate(loaded, [str(setup.data)])
    assert result.loss is not None
    assert math.isfinite(result.loss), "the loss is not finite"
    return f"{result.scores.vqa_accuracy:.0%} of {len(result.predictions)} right{_memory(setup)}"


def verify_run(setup: Setup) -> str:
    """Compare the LoRA run's logits with those that were saved."""
    return _verify(setup, setup.run)


def _verify(setup: Setup, folder: Path) -> str:
    from finetune.runs.verify import require, verify

    verification = verify(folder, device=setup.device)
    require(verification)
    found = verification.comparison
    return (
        f"{found.prompts} prompts: up to {found.worst_difference:.2g} nats apart,"
        f" {found.same_tokens:.0%} of the tokens the same"
    )


def merge_run(setup: Setup) -> str:
    """Merge the LoRA run, and load what was written."""
    from finetune.runs.merge import merge

    merge(setup.run, setup.folder / "merged")
    return _verify(setup, setup.folder / "merged")


def train_in_two_processes(setup: Setup) -> str:
    """Train with DDP in two processes."""
    return _train_together(setup, "two")


def train_with_fsdp(setup: Setup) -> str:
    """Train in two processes that divide the weights."""
    return _train_together(setup, "fsdp", "--fsdp", "default")


def train_with_fsdp_offload(setup: Setup) -> str:
    """Train in two processes that keep the weights in the machine's memory."""
    return _train_together(setup, "offload", "--fsdp", "offload")


def train_with_deepspeed(setup: Setup) -> str:
    """Train in two processes that divide weights, gradients and optimiser with DeepSpeed."""
    return _train_together(setup, "zero3", "--deepspeed", "zero3")


def _train_together(setup: Setup, name: str, *options: str) -> str:
    _make_data(setup)
    run = setup.folder / name
    launcher = (
        "accelerate.commands.launch --multi_gpu --num_machines 1 --num_processes 2 --gpu_ids all"
        if setup.on_cuda
        else "torch.distributed.run --standalone --nproc_per_node 2"
    )
    values = {
        "data": setup.data,
        "out": run,
        "feature-dir": setup.folder / f"features-{name}",
        "device": setup.device,
        "stage": "lora",
        "max-steps": setup.steps,
        "batch-size": 4,
        "eval-fraction": 0,
    }
    given = [word for option, value in values.items() for word in (f"--{option}", str(value))]
    command = [sys.executable, "-m", *launcher.split(), "-m", "finetune", *given, *options]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise AssertionError(_last_lines(done.stderr) or f"exit code {done.returncode}")
    return _losses(run)


def _last_lines(text: str, count: int = 3) -> str:
    """Return the last lines that say something, in one; launchers end with their own tables."""
    lines = [line.strip() for line in text.splitlines() if line.strip(" =-")]
    errors = [line for line in lines if "Error" in line and "ChildFailed" not in line]
    return " / ".join((errors or lines)[-count:])


def _without_bitsandbytes(setup: Setup) -> str:
    from importlib.util import find_spec

    if setup.device == "mps":
        return "bitsandbytes does not support it"
    return "" if find_spec("bitsandbytes") else "bitsandbytes is not installed"


def _without_an_nvidia_gpu(setup: Setup) -> str:
    return "" if setup.on_cuda else "needs an NVIDIA GPU"


def _without_two_gpus(setup: Setup) -> str:
    import torch

    if setup.device == "cpu":
        return ""
    return "" if torch.cuda.device_count() > 1 else "needs two GPUs"


def _without_two_nvidia_gpus(setup: Setup) -> str:
    return _without_an_nvidia_gpu(setup) or _without_two_gpus(setup)


def _without_deepspeed(setup: Setup) -> str:
    from importlib.util import find_spec

    missing = "" if find_spec("deepspeed") else "DeepSpeed is not installed"
    return _without_two_nvidia_gpus(setup) or missing


CHECKS = {
    "load": Check("load, each precision", load),
    "chat": Check("chat, prefix reuse, attention map", chat),
    "many-at-once": Check("eight questions at once, CUDA graphs", many_at_once),
    "chat-4bit": Check("chat in 4 bits", chat_in_4_bits, (), _without_bitsandbytes),
    "chat-8bit": Check("chat in 8 bits", chat_in_8_bits, (), _without_bitsandbytes),
    "lora": Check("bf16 LoRA", train_lora),
    "fp16": Check("fp16 LoRA", train_in_fp16, (), _without_an_nvidia_gpu),
    "qlora": Check("QLoRA", train_qlora, (), _without_bitsandbytes),
    "full": Check("full, gradient checkpointing", train_full),
    "adamw-8bit": Check(
        "8-bit optimiser",
        train_in_8_bits,
        (),
        lambda setup: _without_an_nvidia_gpu(setup) or _without_bitsandbytes(setup),
    ),
    "evaluation": Check("evaluation", evaluate_run, ("lora",)),
    "verify": Check("verify", verify_run, ("lora",)),
    "merge": Check("merge, verify", merge_run, ("lora",)),
    "two-processes": Check("two processes", train_in_two_processes, (), _without_two_gpus),
    "fsdp": Check("FSDP, two GPUs", train_with_fsdp, (), _without_two_nvidia_gpus),
    "fsdp-offload": Check(
        "FSDP offload, two GPUs", train_with_fsdp_offload, (), _without_two_nvidia_gpus
    ),
    "deepspeed": Check("DeepSpeed ZeRO-3, two GPUs", train_with_deepspeed, (), _without_deepspeed),
}
