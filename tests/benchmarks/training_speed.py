"""Compare fine-tuning with `transformers.Trainer` and TRL's SFTTrainer: speed and peak memory.

    python -m tests.benchmarks.training_speed builtin
    python -m tests.benchmarks.training_speed real-size --rows 8 --batch 2 --rounds 1

Every side trains the same parameters of the same weights on the same rows, batches and precision
for several epochs, in a process of its own; the sides take turns. `Trainer` uses the simplest
collator: it runs the processor on the batch and masks the prompt. TRL runs only where it is
installed. Our side splits a step's batch into micro-batches as it does by default. Its first epoch
includes storing the encoder's outputs and setting up the Trainer. Reading and checking the data,
loading and saving are not timed. Times depend on the machine and its load; ratios hardly do. On a
busy machine, measure processor time: `--clock cpu --threads 1`.

`real-size` is a LLaVA of random bf16 weights in the shape of SigLIP-so400m/14-384 and Qwen1.5-0.5B.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ARMS = ("ours", "trainer", "trl")
STAGES = ("projector", "lora")
COLOURS = ("red", "green", "blue", "white", "black", "grey")


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
clock = CLOCKS["wall"]


@dataclass(frozen=True)
class Timing:
    """Times and memory of one side."""

    epochs: tuple[float, ...]
    """Seconds of each epoch."""
    peak: int
    """Peak resident memory of the process in bytes, including libraries and weights."""
    loaded: int
    """Resident memory in bytes after loading the model, before training."""


def write_rows(folder: Path, count: int, size: int, words: tuple[str, str]) -> Path:
    """Write LLaVA data: pictures of coloured noise with one question each."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    records = []
    for number in range(count):
        shade = random.integers(0, 200, 3)
        pixels = (shade + random.integers(0, 56, (size, size, 3))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        records.append(
            {
                "id": str(number),
                "image": f"{number}.png",
                "conversations": [
                    {"from": "human", "value": f"<image>\n{words[0]}"},
                    {"from": "gpt", "value": f"{words[1]} {COLOURS[number % len(COLOURS)]}"},
                ],
            }
        )
    path = folder / "data.json"
    path.write_text(json.dumps(records))
    return path


def save_real_size(folder: Path) -> None:
    from tests.benchmarks.generation import real_size

    loaded = real_size()
    loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)


def config_of(options: argparse.Namespace, out: str) -> Any:
    from finetune.config import FinetuneConfig

    return FinetuneConfig(
        data=(options.data,),
        model=options.model,
        stage=options.stage,
        rank=options.rank,
        dropout=0.0,
        epochs=float(options.epochs),
        batch_size=options.batch,
        lr=1e-5,
        eval_fraction=0.0,
        eval_every=0.0,
        save_every=0.0,
        gradient_checkpointing=False,
        device="cpu",
        feature_dir=f"{out}/features",
        out=f"{out}/run",
    )


def resident() -> int:
    import psutil

    return psutil.Process().memory_info().rss


def peak() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def ours(options: argparse.Namespace, out: str) -> Timing:
    """Train as `vqa-app finetune` does, timed by its progress reports."""
    from finetune.progress import Progress
    from finetune.training.train import train

    began = clock()
    steps: list[float] = []
    loaded = most = 0
    total = options.rows // options.batch * options.epochs

    def on_progress(progress: Progress) -> None:
        nonlocal began, loaded, most
        if progress.phase == "loading":  # the last report comes when the model is loaded
            began, loaded = clock(), resident()
        if progress.phase == "training" and not progress.message and progress.done > len(steps):
            steps.append(clock())
            most = peak()

    train(config_of(options, out), on_progress)
    assert len(steps) == total, (len(steps), total)
    per_epoch = total // options.epochs
    ends = [began, *steps[per_epoch - 1 :: per_epoch]]
    return Timing(tuple(b - a for a, b in itertools.pairwise(ends)), most, loaded)


def prepared(options: argparse.Namespace, out: str) -> tuple[Any, Any]:
    """Load model and processor with transformers: weights, precision and parameters as ours."""
    from transformers import AutoModelForImageTextToText

    from finetune.training.device import set_up_machine
    from finetune.training.freezing import freeze
    from finetune.training.stages import load_base

    config = config_of(options, out)
    loaded = load_base(config, set_up_machine(config))
    model = AutoModelForImageTextToText.from_pretrained(loaded.source, dtype=loaded.model.dtype)
    model.requires_grad_(False)
    frozen = freeze(model, options.stage, rank=options.rank, alpha=2 * options.rank, dropout=0.0)
    return frozen.model, loaded.processor


def epoch_times() -> Any:
    """Return a callback that records the end of each epoch."""
    from transformers import TrainerCallback

    class Times(TrainerCallback):
        def __init__(self) -> None:
            self.ends: list[float] = []
            self.loaded = 0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.ends.append(clock())
            self.loaded = resident()

        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(clock())

        def timing(self) -> Timing:
            pairs = zip(self.ends, self.ends[1:], strict=False)
            return Timing(tuple(b - a for a, b in pairs), peak(), self.loaded)

    return Times()


def arguments_of(options: argparse.Namespace, out: str) -> dict[str, Any]:
    from finetune.training.device import set_up_machine

    return {
        "output_dir": out,
        "per_device_train_batch_size": options.batch,
        "num_train_epochs": options.epochs,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
        "bf16": set_up_machine(config_of(options, out)).autocast is not None,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "gradient_checkpointing": False,
    }


def records_of(options: argparse.Namespace) -> list[tuple[Path, str, str]]:
    """Return picture, question and answer of every row."""
    path = Path(options.data)
    return [
        (
            path.parent / record["image"],
            record["conversations"][0]["value"].removeprefix("<image>\n"),
            record["conversations"][1]["value"],
        )
        for record in json.loads(path.read_text(encoding="utf-8"))
    ]


def plain_trainer(options: argparse.Namespace, out: str) -> Timing:
    """Train with `transformers.Trainer` as its documentation shows it."""
    from PIL import Image
    from transformers import Trainer, TrainingArguments

    model, processor = prepared(options, out)

    def collate(rows: list[tuple[Path, str, str]]) -> dict[str, Any]:
        images = [Image.open(path).convert("RGB") for path, _, _ in rows]
        asked = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
            for _, question, _ in rows
        ]
        prompts = [
            processor.apply_chat_template(messages, add_generation_prompt=True)
            for messages in asked
        ]
        whole = [
            processor.apply_chat_template(
                [*m, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
            )
            for m, (_, _, answer) in zip(asked, rows, strict=True)
        ]
        layout = {"return_tensors": "pt", "padding": True, "padding_side": "right"}
        batch = dict(processor(text=whole, images=[[i] for i in images], **layout))
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        # The length of a prompt is counted on text alone, so that no picture is processed twice.
        texts = processor.tokenizer([*whole, *prompts])["input_ids"]
        for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
            answer = len(texts[row]) - len(texts[len(rows) + row])
            labels[row, : length - answer] = -100
        return batch | {"labels": labels}

    times = epoch_times()
    Trainer(
        model,
        TrainingArguments(**arguments_of(options, out)),
        train_dataset=records_of(options),  # type: ignore[arg-type]
        data_collator=collate,
        callbacks=[times],
    ).train()
    return times.timing()


def trl(options: argparse.Namespace, out: str) -> Timing:
    """Train with TRL's SFTTrainer on prompts, completions and pictures."""
    from datasets import Dataset, Image
    from trl import SFTConfig, SFTTrainer

    model, processor = prepared(options, out)
    rows = records_of(options)
    data = Dataset.from_dict(
        {
            "images": [[str(path)] for path, _, _ in rows],
            "prompt": [[{"role": "user", "content": question}] for _, question, _ in rows],
            "completion": [[{"role": "assistant", "content": answer}] for _, _, answer in rows],
        }
    ).cast_column("images", [Image()])
    times = epoch_times()
    SFTTrainer(
        model,
        args=SFTConfig(**arguments_of(options, out), max_length=None),
        train_dataset=data,
        processing_class=processor,
        callbacks=[times],
    ).train()
    return times.timing()


def run_arm(options: argparse.Namespace) -> None:
    """Run one side in this process and print its timing as JSON."""
    import torch

    global clock
    clock = CLOCKS[options.clock]
    torch.set_num_threads(options.threads)
    arm = {"ours": ours, "trainer": plain_trainer, "trl": trl}[options.arm]
    with tempfile.TemporaryDirectory() as out:
        print("TIMING", json.dumps(vars(arm(options, out))))


def measure(arm: str, stage: str, model: str, data: Path, options: argparse.Namespace) -> Timing:
    command = [sys.executable, "-m", "tests.benchmarks.training_speed", options.shape, "--arm", arm]
    command += ["--stage", stage, "--model", model, "--data", str(data)]
    for name in ("rows", "batch", "epochs", "rank", "threads", "clock"):
        command += [f"--{name}", str(getattr(options, name))]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    line = next((x for x in done.stdout.splitlines() if x.startswith("TIMING ")), None)
    if line is None:
        raise SystemExit(f"{arm} at stage {stage} failed:\n{done.stderr[-3000:]}")
    values = json.loads(line.removeprefix("TIMING "))
    return Timing(tuple(values["epochs"]), values["peak"], values["loaded"])


def report(stage: str, timings: dict[str, list[Timing]], rows: int) -> None:
    """Print a Markdown table of medians and the ratios of ours to each other side."""

    def first(arm: str) -> float:
        return rows / statistics.median(t.epochs[0] for t in timings[arm])

    def later(arm: str) -> float:
        return rows / statistics.median(s for t in timings[arm] for s in t.epochs[1:])

    def most(arm: str, above: bool = False) -> float:
        return statistics.median(t.peak - above * t.loaded for t in timings[arm]) / 1e9

    print(f"\n{stage}:\n")
    print("| | " + " | ".join(timings) + " |")
    print("|---|" + "---|" * len(timings))
    for name, value, form in (
        ("samples/s, first epoch", first, "{:.2f}"),
        ("samples/s, later epochs", later, "{:.2f}"),
        ("peak memory, GB", most, "{:.2f}"),
        ("of which above the loaded model", lambda arm: most(arm, True), "{:.2f}"),
    ):
        print(f"| {name} | " + " | ".join(form.format(value(arm)) for arm in timings) + " |")
    for other in (arm for arm in timings if arm != "ours"):
        print(
            f"\nours / {other}: first epoch {first('ours') / first(other):.2f}×, later epochs"
            f" {later('ours') / later(other):.2f}×, peak memory {most('ours') / most(other):.2f}×,"
            f" above the loaded model {most('ours', True) / most(other, True):.2f}×"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=["builtin", "real-size"])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--clock", default="wall", choices=CLOCKS)
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--model", default="builtin", help=argparse.SUPPRESS)
    parser.add_argument("--data", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rows % options.batch:
        parser.error("--rows must be a multiple of --batch, so that epochs end with a step")
    if options.epochs < 2:
        parser.error("--epochs must be at least 2: the first is reported separately")
    if options.arm:
        run_arm(options)
        return
    arms = [arm for arm in ARMS if arm != "trl" or find_spec("trl")]
    if "trl" not in arms:
        print("TRL is not installed (`pip install trl`); its column is left out.")
    with tempfile.TemporaryDirectory() as folder:
        model = options.model
        words, size = ("what colour is the picture?", "it is"), 128
        if options.shape == "real-size":
            model, words, size = f"{folder}/model", ("What colour is it ?", "is the"), 384
            save_real_size(Path(model))
        data = Path(folder) / "data"
        data.mkdir()
        path = write_rows(data, options.rows, size, words)
        print(
            f"{options.shape}: {options.rows} rows, batches of {options.batch}, {options.epochs}"
            f" epochs, LoRA rank {options.rank}, {options.threads} threads, {options.rounds}"
            f" rounds, {options.clock} time"
        )
        for stage in options.stages:
            timings: dict[str, list[Timing]] = {arm: [] for arm in arms}
            for _ in range(options.rounds):
                for arm in arms:
                    timings[arm].append(measure(arm, stage, model, path, options))
                    print(stage, arm, timings[arm][-1], file=sys.stderr)
            report(stage, timings, options.rows)


if __name__ == "__main__":
    main()
