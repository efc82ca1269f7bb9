"""`vqa-app models` and `vqa-app compose`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(add_completion=False)


@app.command()
def compose(
    encoder: Annotated[
        str, typer.Option(help="SigLIP, SigLIP 2 or CLIP: a hub id or a folder.", metavar="ID")
    ],
    llm: Annotated[
        str, typer.Option(help="A language model with a chat template.", metavar="ID")
    ],
    out: Annotated[Path, typer.Option(help="A new folder.", metavar="DIR")],
    dtype: Annotated[
        str, typer.Option(help="auto (the language model's), float32, bfloat16 or float16.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Of the new projector's weights.")] = 0,
    offline: Annotated[bool, typer.Option("--offline", help="Download nothing.")] = False,
) -> None:
    """Make a LLaVA from an image encoder and a language model.

    Its projector is new: the model answers nonsense about pictures until
    `vqa-app finetune --model DIR --stage projector` has trained that.
    """
    from vqa_app.replies import waiting

    console = Console(stderr=True, highlight=False)
    with waiting(console, "Composing"):
        from vqa_app import modeling

        folder = modeling.compose(encoder, llm, out, dtype=dtype, seed=seed, offline=offline)
    console.print(f"Composed {folder}. Next, train its projector:", markup=False)
    print(f"vqa-app finetune --model {folder} --stage projector --data YOUR.json")
