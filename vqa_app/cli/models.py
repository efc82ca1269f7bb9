"""`vqa-app models` and `vqa-app compose`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from vqa_app.cli.options import Offline
from vqa_app.devices import Dtype
from vqa_app.files import in_words

if TYPE_CHECKING:
    from vqa_app.checkpoints.catalogue import CatalogueEntry

app = typer.Typer(add_completion=False)

NARROW = 110
"""Columns of a terminal below which licences and notes would break what stands beside them."""


@app.command()
def models(
    runs: Annotated[
        Path, typer.Option(help="Folder whose runs are listed, too.", metavar="DIR")
    ] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List models to use, and which are here already.

    Any other model of the hub that transformers' AutoModelForImageTextToText loads, and that has a
    chat template, can be named as well.
    """
    from vqa_app.checkpoints.catalogue import catalogue

    entries = catalogue(runs)
    if as_json:
        rows = [asdict(e) | {"memory": e.memory, "memory_4bit": e.memory_4bit} for e in entries]
        print(json.dumps(rows, indent=1))
        return
    print(table_of(entries, Console()))


def table_of(entries: list[CatalogueEntry], console: Console) -> str:
    """A row for each model: for a terminal as wide as it is, elsewhere on one line each. A narrow
    terminal gets no licences and notes; the hub id, which is there to be copied, is never broken.
    """
    narrow = console.is_terminal and console.width < NARROW
    rows = Table(box=None, pad_edge=False, header_style="bold")
    titles = ("model", "here", "files", "memory", "4bit", "licence", "")
    for title in titles[: 5 if narrow else 7]:
        numbers = title in ("files", "memory", "4bit")
        rows.add_column(
            title,
            justify="right" if numbers else "left",
            overflow="fold",
            no_wrap=title not in ("licence", ""),
        )
    for entry in entries:
        licence = entry.licence + (" (to be accepted there)" if entry.gated else "")
        memory = [in_words(size) if size else "?" for size in (entry.memory, entry.memory_4bit)]
        here = "yes" if entry.cached else "no"
        cells = (entry.name, here, entry.size, *memory, licence, entry.note)
        rows.add_row(*cells[: len(rows.columns)])
    fits = console.is_terminal and not narrow
    wide = console if fits else Console(width=200, color_system=None)
    with wide.capture() as captured:
        wide.print(rows)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    return "\n".join(lines + ["A wider terminal shows licences and notes."] * narrow)


@app.command()
def compose(
    encoder: Annotated[
        str, typer.Option(help="SigLIP, SigLIP 2 or CLIP: a hub id or a folder.", metavar="ID")
    ],
    llm: Annotated[str, typer.Option(help="A language model with a chat template.", metavar="ID")],
    out: Annotated[Path, typer.Option(help="A new folder.", metavar="DIR")],
    dtype: Annotated[Dtype, typer.Option(help="auto keeps the language model's.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the new projector's weights.")] = 0,
    offline: Offline = False,
) -> None:
    """Make a LLaVA from an image encoder and a language model.

    Its projector is new: the model answers nonsense about pictures until
    `vqa-app finetune --model DIR --stage projector` has trained that.
    """
    from vqa_app.cli.terminal import waiting

    console = Console(stderr=True, highlight=False)
    with waiting(console, "Composing"):
        from vqa_app.checkpoints import compose

        folder = compose.compose(encoder, llm, out, dtype=dtype, seed=seed, offline=offline)
    console.print(f"Composed {folder}. Next, train its projector:", markup=False)
    print(f"vqa-app finetune --model {folder} --stage projector --data YOUR.json")
