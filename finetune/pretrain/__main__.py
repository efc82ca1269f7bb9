"""Train the built-in model from scratch: `python -m finetune.pretrain --out DIR`."""

import argparse
import os
import sys
from pathlib import Path

# Without these, half of the time on CPUs is spent on page faults. glibc reads them at start.
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m finetune.pretrain", description=__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for states and the result; an interrupted run continues there",
    )
    parser.add_argument("--photos", type=Path, help="photographs packed by `pack_data`")
    parser.add_argument("--icons", type=Path, help="icons packed by `pack_data`")
    parser.add_argument(
        "--pictures", type=int, default=800_000, help="training pictures of the encoder"
    )
    parser.add_argument(
        "--language-steps", type=int, default=8_000, help="steps on symbolic pictures"
    )
    parser.add_argument(
        "--alignment-steps", type=int, default=8_000, help="steps on the encoder's features"
    )
    parser.add_argument(
        "--processes", type=int, help="processes in the language stages; two on a CPU by default"
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

    from finetune.pretrain.exam import format_scores
    from finetune.pretrain.recipe import Plan, build, examine, sizes

    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    plan = Plan(
        args.out,
        args.photos,
        args.icons,
        args.pictures,
        args.language_steps,
        args.alignment_steps,
        args.seed,
        args.tiny,
        device,
        args.processes or min(2, torch.get_num_threads() if device == "cpu" else 1),
    )
    final = build(plan)
    print(f"The model is in {final} ({sizes(final)}).", flush=True)
    print(format_scores(examine(plan, final)))


if __name__ == "__main__":
    main()
