"""The commands `vqa-app models` and `vqa-app compose`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vqa_app.checkpoints.source import find_gguf, find_local
from vqa_app.cli.options import Offline
from vqa_app.devices import Dtype
from vqa_app.errors import ModelError
from vqa_app.files import format_bytes
from vqa_app.serving.remotes import FILE_NAME, Remote, read_remotes
from vqa_app.suggestions import suggest
from vqa_app.user_folders import user_data

if TYPE_CHECKING:
    from vqa_app.checkpoints.hub_models import CatalogueEntry

app = typer.Typer(add_completion=False)

NARROW = 110
"""Terminal width below which licences and notes are left out, because they would not fit."""


@app.command()
def models(
    runs: Annotated[
        Path | None,
        typer.Option(
            help="A folder whose runs are listed as well. [default: runs]",
            metavar="DIR",
        ),
    ] = None,
    installed: Annotated[
        bool,
        typer.Option("--installed", help="List models in the hub's cache on this machine instead."),
    ] = False,
    delete: Annotated[
        str | None,
        typer.Option(help="Delete this model from the hub's cache.", metavar="ID"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    remotes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="TOML file with servers that answer elsewhere. [default: remotes.toml in the data"
            " folder of chat]",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List models, which are downloaded, and the servers elsewhere that are set up.

    Any other model on the hub can be used as well, if transformers' AutoModelForImageTextToText
    loads it and it has a chat template.
    """
    if delete is not None:
        _delete(delete, yes)
        return
    if installed:
        _print_installed(as_json)
        return
    from vqa_app.checkpoints.catalogue import catalogue

    if runs is not None and not os.path.isdir(runs):
        raise ModelError(
            f"There is no folder {runs}.",
            suggest(runs, path=Path.is_dir, otherwise="Give the folder that holds the runs."),
        )
    servers = read_remotes(remotes or user_data() / FILE_NAME, required=remotes is not None)
    entries = catalogue(runs or Path("runs"))
    if as_json:
        rows = [asdict(e) | {"memory": e.memory, "memory_4bit": e.memory_4bit} for e in entries]
        rows += [
            {"name": each.server.name, "kind": "server", "note": each.name, "key_env": each.key_env}
            for each in servers
        ]
        print(json.dumps(rows, indent=1))
        return
    print(table_of(entries, Console()))
    if servers:
        print(f"\n{_server_table(servers)}")


def _server_table(servers: list[Remote]) -> str:
    """Return a table of servers elsewhere, with what `--model` takes for each."""
    rows = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("server", "--model", "key"):
        rows.add_column(title, no_wrap=True)
    for each in servers:
        missing = each.key_env is not None and not os.environ.get(each.key_env, "").strip()
        key = f"{each.key_env}, not set" if missing else each.key_env or "none"
        rows.add_row(*map(escape, (each.name, each.server.name, key)))
    return _captured(rows, Console(width=400, color_system=None))


def _print_installed(as_json: bool) -> None:
    from vqa_app.checkpoints.installed import installed_models

    found = installed_models()
    if as_json:
        print(json.dumps([asdict(model) for model in found], indent=1))
        return
    if not found:
        print("No model of the hub is on this machine.")
        return
    rows = Table(box=None, pad_edge=False, header_style="bold")
    rows.add_column("model", no_wrap=True)
    rows.add_column("on disk", justify="right", no_wrap=True)
    rows.add_column("last used", no_wrap=True)
    rows.add_column("")
    for model in found:
        used = datetime.fromtimestamp(model.last_used).strftime("%Y-%m-%d")
        note = "" if model.complete else "incomplete"
        rows.add_row(model.name, format_bytes(model.size), used, note)
    print(_captured(rows, Console(width=200, color_system=None)))


def _delete(name: str, yes: bool) -> None:
    """Delete a model of the hub's cache, after a question unless `yes`.

    Raises:
        ModelError: It is not there, or cannot be deleted.
    """
    from vqa_app.checkpoints.installed import delete_model, installed_models

    size = next((model.size for model in installed_models() if model.name == name), None)
    question = f"Delete {name} ({format_bytes(size or 0)})?"
    if size is not None and not yes and not typer.confirm(question, err=True):
        print("Nothing was deleted.")
        return
    print(f"Deleted {name}; {format_bytes(delete_model(name))} freed.")


def _captured(table: Table, console: Console) -> str:
    """Return a table as text, without spaces at the ends of lines."""
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def table_of(entries: list[CatalogueEntry], console: Console) -> str:
    """Return a table with a row for each model.

    It fits a terminal, with licences and notes left out if it is narrow; elsewhere each row is one
    line. Hub ids are never broken, so that they can be copied.
    """
    narrow = console.is_terminal and console.width < NARROW
    rows = Table(box=None, pad_edge=False, header_style="bold")
    titles = ("model", "local", "files", "memory", "4bit", "licence", "")
    for title in titles[: 5 if narrow else 7]:
        numbers = title in ("files", "memory", "4bit")
        rows.add_column(
            title,
            justify="right" if numbers else "left",
            overflow="fold",
            no_wrap=title not in ("licence", ""),
        )
    for entry in entries:
        licence = entry.licence + (" (accept it on the hub)" if entry.gated else "")
        memory = [format_bytes(size) if size else "?" for size in (entry.memory, entry.memory_4bit)]
        local = "yes" if entry.cached else "no"
        purpose = entry.note
        if entry.figures:
            purpose += f" {entry.figures}, says {entry.figures_source}."
        if entry.package:
            purpose += f" Needs {entry.package}."
        cells = (entry.name, local, entry.size, *memory, licence, purpose)
        rows.add_row(*cells[: len(rows.columns)])
    fits = console.is_terminal and not narrow
    wide = console if fits else Console(width=400, color_system=None)
    note = ["A wider terminal also shows licences and notes."] if narrow else []
    return "\n".join([_captured(rows, wide), *note])


@app.command()
def compose(
    encoder: Annotated[
        str,
        typer.Option(help="Hub id or folder of a SigLIP, SigLIP 2 or CLIP encoder.", metavar="ID"),
    ],
    llm: Annotated[
        str,
        typer.Option(
            help="Hub id or folder of a language model with a chat template, or a GGUF file.",
            metavar="ID",
        ),
    ],
    out: Annotated[Path, typer.Option(help="A new folder to write.", metavar="DIR")],
    dtype: Annotated[
        Dtype, typer.Option(help="Precision of the weights; auto keeps the language model's.")
    ] = "auto",
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Seed of the projector's initial weights.")
    ] = 0,
    offline: Offline = False,
) -> None:
    """Make a LLaVA from an image encoder and a language model.

    Its projector is initialised randomly: until `vqa-app finetune --model DIR --stage projector`
    has trained it, answers about pictures are nonsense.
    """
    from vqa_app.cli.terminal import spinner

    for name in (encoder, llm) if find_gguf(llm) is None else (encoder,):
        find_local(name)  # a mistyped one is reported before the imports, which take seconds
    console = Console(stderr=True, highlight=False)
    with spinner(console, "Composing"):
        from vqa_app.checkpoints import compose

        folder = compose.compose(encoder, llm, out, dtype=dtype, seed=seed, offline=offline)
    console.print(f"Wrote {folder}. Next, train its projector:", markup=False)
    print(f"vqa-app finetune --model {folder} --stage projector --data YOUR.json")
