"""`vqa-app serve`: OpenAI's API for programs, without a page."""

from __future__ import annotations

import hashlib
import os
import re
import signal
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
    keep_alive: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Unload the model after this time without a question, as in 10m, 90s or 2h; the"
            " next question loads it again.",
        ),
    ] = None,
    background: Annotated[
        bool,
        typer.Option(
            "--background",
            help="Start the server in the background, and return when it is ready. It ends after an"
            " hour without a question.",
        ),
    ] = False,
    stop: Annotated[
        bool, typer.Option("--stop", help="Stop your servers in the background.")
    ] = False,
    no_port: Annotated[
        bool,
        typer.Option("--no-port", help="Answer only your own `vqa-app ask`, and no programs."),
    ] = False,
    in_background: Annotated[bool, typer.Option("--in-background", hidden=True)] = False,
    max_file_mb: MaxFileMb = 20,
    max_megapixels: MaxMegapixels = 50,
) -> None:
    """Serve a model to programs, through OpenAI's API, and to `vqa-app ask`."""
    from vqa_app.checkpoints.source import stay_offline
    from vqa_app.pictures.download import allowed_host
    from vqa_app.pictures.picture import ImageLimits
    from vqa_app.serving import listener as listening

    if stop:
        _stop_background()
        return
    unload_after = None if keep_alive is None else parse_duration("--keep-alive", keep_alive)
    limits = ImageLimits.of(max_file_mb, max_megapixels)
    model_options.check_names()
    if model_options.server() is not None:
        raise UsageError(
            f"{model_options.model} is a server with this API already.",
            "Point the programs at it, or serve a model of this machine.",
        )
    keys = parse_keys(api_key or [])
    media_hosts = [allowed_host(entry) for entry in allow_media_host or []]
    settings = repr(
        (no_port, host, port, sorted(keys.items()), media_hosts, allow_host, unload_after, limits)
    )
    settings = hashlib.sha256(settings.encode()).hexdigest()  # the keys stay in this process
    if background:
        _start_background(model_options, None if no_port else settings)
        return
    listener = None if no_port else listening.listen(host, port)
    address = f"{listening.address_of(listener)}v1" if listener else ""
    if listener is None:
        print("Answers `vqa-app ask`  (Ctrl-C stops)", flush=True)
    else:
        print(f"OpenAI's API at {address}  (Ctrl-C stops)", flush=True)
        if others := listening.address_for_others(listener):
            print(f"From other machines: {others}v1", flush=True)
    if listener and not keys and not listening.is_loopback(host):
        print(
            "Warning: anyone who can reach this address can use the model. "
            "--api-key KEY asks for a key.",
            file=sys.stderr,
            flush=True,
        )
    if model_options.offline:
        stay_offline()
    from vqa_app.cli.ask_service import AskService
    from vqa_app.cli.background import IDLE_SECONDS
    from vqa_app.serving import model_choices
    from vqa_app.serving.api_server import api_application
    from vqa_app.serving.embeddings import Embedder, load_builtin
    from vqa_app.serving.engine_pool import EnginePool
    from vqa_app.serving.idle import watch_idle
    from vqa_app.serving.openai_api import ChatApi, model_names

    choice = model_choices.choice_from_options(
        model_options.model, model_options.adapter, model_options.quantize, model_options.revision
    )
    load = partial(
        model_choices.load_engine, device=model_options.device, dtype=model_options.dtype
    )
    service = AskService(
        choice,
        model_options.device,
        model_options.dtype,
        address=address,
        background=in_background,
        settings=settings,
    )
    pool = EnginePool(service.remembering(load), lambda: [choice], choice.key)
    api = ChatApi(
        lambda owner: pool,
        media_hosts=media_hosts,
        limits=limits,
        embedder=Embedder(partial(load_builtin, model_options.device)),
    )
    if problem := service.open(api, pool):
        if in_background:
            raise problem
        print(f"`vqa-app ask` cannot use this server: {problem.problem}", file=sys.stderr)
    pool.start_loading()

    def end() -> None:
        service.close()
        api.stop_all()

    watch_idle(
        pool,
        unload_after=unload_after,
        end_after=IDLE_SECONDS if in_background else None,
        end=lambda: os.kill(os.getpid(), signal.SIGTERM),
    )
    name = model_names(choice)[0]
    application = api_application(api, keys=keys, hosts=allow_host or [])
    listening.serve(application, listener, end, lambda: _wait_for_model(pool, name))
    service.close()
    status = pool.status()
    pool.close(patience=0.5)
    if status.phase == "failed":
        raise ModelError(status.message, "Choose another with --model.")


def _start_background(model: EngineOptions, settings: str | None) -> None:
    """Run the same command line in the background, and say where it answers."""
    from rich.console import Console

    from vqa_app.cli.background import check_supported, log_file, start_in_background

    check_supported()
    words = ["--in-background" if word == "--background" else word for word in sys.argv[1:]]
    console = Console(stderr=True, highlight=False)
    status = start_in_background(model.model_identity(), words, console, settings)
    print(f"`vqa-app ask` has answers from {status['model']} at once now.")
    if status["address"]:
        print(f"OpenAI's API at {status['address']}")
    print(
        "Stop it with: vqa-app serve --stop\n"
        f"It ends by itself after an hour without a question. Its log: {log_file()}"
    )


def _stop_background() -> None:
    from vqa_app.cli.background import check_supported, stop_all

    check_supported()
    stopped = stop_all()
    for status in stopped:
        print(f"Stopped the server of {status['model']} (process {status['pid']}).")
    if not stopped:
        print("No server runs in the background.", file=sys.stderr)


def parse_duration(option: str, text: str) -> float:
    """Return a time such as 90s, 10m or 2h in seconds.

    Args:
        option: Name of the option, for the message.
        text: Its value.

    Raises:
        UsageError: It is none, or not above zero.
    """
    units = {"s": 1, "m": 60, "h": 3600}
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip(), re.ASCII)
    if not found or not 0 < (seconds := float(found[1]) * units[found[2]]) < 1e9:
        raise UsageError(f"{option}: {text!r} is not a duration.", "Write it like 90s, 10m or 2h.")
    return seconds


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
