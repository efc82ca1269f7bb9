"""Train the built-in model from scratch: `python -m finetune.pretrain --minutes 150 --out DIR`."""

import argparse
import os
import sys
from pathlib import Path

# Without these, half of the time on CPUs is spent on page faults. glibc reads them at start.
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m finetune.pretrain", description=__doc__)
    parser.add_argument("--minutes", type=float, default=150, help="time for all stages together")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for checkpoints, data and the result; an interrupted run continues there",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--tiny", action="store_true", help="train a tiny model, to test that the recipe runs"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    args = parser.parse_args()
    if sys.platform == "linux" and any(os.environ.get(k) != v for k, v in MALLOC.items()):
        command = [sys.executable, "-m", "finetune.pretrain", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **MALLOC})

    import torch

    from finetune.pretrain.recipe import Plan, build, sizes

    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    parallel = device == "cpu" and torch.get_num_threads() > 1
    final = build(Plan(args.out, args.minutes, args.seed, args.tiny, device, parallel))
    print(f"The model is in {final} ({sizes(final)}).")


if __name__ == "__main__":
    main()
