"""`vqa-app serve`: OpenAI's API for programs, without a page."""

from __future__ import annotations

import re
import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from vqa_app.cli.options import EngineOptions, MaxFileMb, MaxMegapixels, with_model_options
from vqa_app.errors import ModelError, UsageError, VqaError

if TYPE_CHECKING:
    from vqa_app.serving.engine_pool import EnginePool

app = typer.Typer(add_completion=False)


@app.command()
@with_model_options
def serve(
    model_options: EngineOptions,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free port.")] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME:]KEY",
            envvar="VQA_SERVER_KEYS",
            help="Ask for this key; repeat it for more keys. In the variable, spaces separate "
            "them: there other users of this machine do not see them.",
        ),
    ] = None,
    allow_media_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST",
            help="Fetch pictures that requests name by their address on this host, like "
            "images.example.com; repeat it for more hosts.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Host name to answer to, in addition to this machine's."),
    ] = None,
    max_file_mb: MaxFileMb = 20,
    max_megapixels: MaxMegapixels = 50,
) -> None:
    """Serve a model to programs, through OpenAI's API."""
    from vqa_app.checkpoints.source import stay_offline
    from vqa_app.pictures.download import allowed_host
    from vqa_app.pictures.picture import ImageLimits
    from vqa_app.serving import listener as listening

    limits = ImageLimits.of(max_file_mb, max_megapixels)
    model_options.check_names()
    if model_options.server() is not None:
        raise UsageError(
            f"{model_options.model} is a server with this API already.",
            "Point the programs at it, or serve a model of this machine.",
        )
    keys = parse_keys(api_key or [])
    media_hosts = [allowed_host(entry) for entry in allow_media_host or []]
    listener = listening.listen(host, port)
    address = listening.address_of(listener)
    print(f"OpenAI's API at {address}v1  (Ctrl-C stops)", flush=True)
    if others := listening.address_for_others(listener):
        print(f"From other machines: {others}v1", flush=True)
    if not keys and not listening.is_loopback(host):
        print(
            "Warning: anyone who can reach this address can use the model. "
            "--api-key KEY asks for a key.",
            file=sys.stderr,
            flush=True,
        )
    if model_options.offline:
        stay_offline()
    from vqa_app.serving import model_choices
    from vqa_app.serving.api_server import api_application
    from vqa_app.serving.engine_pool import EnginePool
    from vqa_app.serving.openai_api import ChatApi, model_names

    choice = model_choices.choice_from_options(
        model_options.model, model_options.adapter, model_options.quantize, model_options.revision
    )
    load = partial(
        model_choices.load_engine, device=model_options.device, dtype=model_options.dtype
    )
    pool = EnginePool(load, lambda: [choice], choice.key)
    api = ChatApi(
        lambda owner: pool,
        media_hosts=media_hosts,
        limits=limits,
    )
    pool.start_loading()
    name = model_names(choice)[0]
    application = api_application(api, keys=keys, hosts=allow_host or [])
    listening.serve(application, listener, api.stop_all, lambda: _wait_for_model(pool, name))
    status = pool.status()
    pool.close(patience=0.5)
    if status.phase == "failed":
        raise ModelError(status.message, "Choose another with --model.")


def parse_keys(entries: list[str]) -> dict[str, str]:
    """Parse the values of --api-key into keys by name; those without a name are numbered.

    Raises:
        UsageError: A key is empty, cannot be sent in a header, or has the name of another.
    """
    keys: dict[str, str] = {}
    for number, entry in enumerate(entries, 1):
        name, colon, key = entry.partition(":")
        if not colon:
            name, key = f"key-{number}", entry
        if not re.fullmatch(r"[\w.-]+", name, re.ASCII) or not re.fullmatch(r"[!-~]+", key):
            raise UsageError(
                f"The value of --api-key number {number} is not a key.",
                "Write KEY or NAME:KEY, of letters, digits and punctuation without spaces.",
            )
        if name in keys:
            raise UsageError(f"--api-key names {name} twice.", "Give each key its own name.")
        keys[name] = key
    return keys


def _wait_for_model(pool: EnginePool, name: str) -> bool:
    """Print when the model is ready; return False if it cannot be loaded."""
    try:
        pool.wait()
    except VqaError:
        return pool.status().phase != "failed"  # cancelled: the server is shutting down
    print(f"{name} is ready.", flush=True)
    return True
