"""`python -m finetune.pretrain --minutes 150 --out DIR`: the built-in model from nothing."""

import argparse
import os
import sys
from pathlib import Path

# Half of the time on CPUs goes into page faults without these; glibc reads them at start.
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m finetune.pretrain", description=__doc__)
    parser.add_argument("--minutes", type=float, default=150, help="time for all stages together")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for states, data and the result; a killed run goes on there",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a small model, to see that it runs")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    given = parser.parse_args()
    if sys.platform == "linux" and any(os.environ.get(k) != v for k, v in MALLOC.items()):
        command = [sys.executable, "-m", "finetune.pretrain", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **MALLOC})

    import torch

    from finetune.pretrain.recipe import Plan, build, sizes

    device = given.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    parallel = device == "cpu" and torch.get_num_threads() > 1
    final = build(Plan(given.out, given.minutes, given.seed, given.tiny, device, parallel))
    print(f"The model is in {final} ({sizes(final)}).")


if __name__ == "__main__":
    main()
