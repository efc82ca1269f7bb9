"""`vqa-app chat`."""

from __future__ import annotations

import re
import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vqa_app.checkpoints.source import stay_offline
from vqa_app.cli.options import EngineOptions, MaxFileMb, MaxMegapixels, with_model_options
from vqa_app.errors import UsageError, VqaError
from vqa_app.user_folders import user_data

if TYPE_CHECKING:
    from filelock import BaseFileLock

    from vqa_app.serving.engine_pool import EnginePool

app = typer.Typer(add_completion=False)


@app.command()
@with_model_options
def chat(
    model_options: EngineOptions,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free port.")] = 7860,
    auth: Annotated[
        list[str] | None,
        typer.Option(metavar="USER:PASS", help="Ask for a password; repeat it for more users."),
    ] = None,
    root_path: Annotated[
        str, typer.Option(help="Path under which a proxy shows the page, like /vqa.")
    ] = "",
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data-dir",
            "--share-data-dir",
            metavar="DIR",
            help="Folder for conversations, taught rows and runs; data sets in its subfolder "
            "datasets are offered to everyone.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Host name to answer to, in addition to this machine's."),
    ] = None,
    allow_any_model: Annotated[
        bool, typer.Option("--allow-any-model", help="Let people add hub models in the browser.")
    ] = False,
    allow_pictures_from: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST",
            help="Let people add pictures by their address on this host, like "
            "images.example.com; repeat it for more hosts.",
        ),
    ] = None,
    remotes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="TOML file with servers that answer elsewhere, offered beside the models of this"
            " machine. [default: remotes.toml in the data folder]",
            show_default=False,
        ),
    ] = None,
    operator: Annotated[
        str | None,
        typer.Option(
            metavar="USER",
            help="User of --auth who may delete downloaded models in the browser. Without --auth, "
            "--allow-host and --root-path, whoever uses the page on this machine may.",
        ),
    ] = None,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Do not open a browser window.")
    ] = False,
    max_file_mb: MaxFileMb = 20,
    max_megapixels: MaxMegapixels = 50,
) -> None:
    """Chat about pictures in the browser."""
    from vqa_app.pictures.download import allowed_host
    from vqa_app.pictures.picture import ImageLimits
    from vqa_app.serving.listener import address_for_others, address_of, is_loopback, listen
    from vqa_app.serving.remotes import FILE_NAME, read_remotes

    limits = ImageLimits.of(max_file_mb, max_megapixels)
    model_options.check_names()
    users = _users(auth or [])
    root_path = _path(root_path)
    folder = data_dir or user_data()
    servers = read_remotes(remotes or folder / FILE_NAME, required=remotes is not None)
    picture_hosts = [allowed_host(entry) for entry in allow_pictures_from or []]
    if operator is not None and operator not in users:
        raise UsageError(f"--operator {operator} is not a user of --auth.", "Name one of them.")
    alone = is_loopback(host) and not (users or root_path or allow_host)
    listener = listen(host, port)
    address = address_of(listener, root_path)
    print(f"Chat at {address}  (Ctrl-C stops)", flush=True)
    if others := address_for_others(listener, root_path):
        print(f"From other machines: {others}", flush=True)
    if not users and not is_loopback(host):
        print(
            "Warning: anyone who can reach this address can use the page. "
            "--auth USER:PASS asks for a password.",
            file=sys.stderr,
            flush=True,
        )
    if model_options.offline:
        stay_offline()
    from ui.app import create_application, exit_process
    from vqa_app.cli.ask_service import AskService
    from vqa_app.serving import model_choices

    if server := model_options.server():
        start = model_choices.choice_from_server(server)
    else:
        start = model_choices.choice_from_options(
            model_options.model,
            model_options.adapter,
            model_options.quantize,
            model_options.revision,
        )
    service = AskService(start, model_options.device, model_options.dtype, address=f"{address}v1")
    load = partial(
        model_choices.load_engine, device=model_options.device, dtype=model_options.dtype
    )
    application = create_application(
        folder,
        service.remembering(load),
        lambda: model_choices.available_choices(start, folder / "runs", servers),
        start.key,
        users=users,
        hosts=allow_host or [],
        root_path=root_path,
        allow_any_model=allow_any_model,
        picture_hosts=picture_hosts,
        limits=limits,
        device=model_options.device,
        dtype=model_options.dtype,
        may_delete_models=lambda owner: alone or owner == f"user:{operator}",
    )
    lock = _lock(folder)
    if start.remote is None and (
        problem := service.open(application.api, application.service.pool)
    ):
        print(f"`vqa-app ask` cannot use this server: {problem.problem}", file=sys.stderr)
    application.service.pool.start_loading()
    threading.Thread(
        target=_report_load_failure, args=(application.service.pool,), daemon=True
    ).start()
    if not no_browser:
        threading.Thread(target=_open, args=(address,), daemon=True).start()
    application.serve(listener, service.close)
    service.close()
    if lock is not None:
        lock.release()
    exit_process()


def _users(entries: list[str]) -> dict[str, str]:
    """Parse the values of --auth into passwords by user."""
    users: dict[str, str] = {}
    for entry in entries:
        name, colon, password = entry.partition(":")
        if not (name and colon and password):
            raise UsageError("--auth needs a user and a password.", "Write --auth ann:secret.")
        if name in users:
            raise UsageError(f"--auth names {name} twice.", "Give each user one password.")
        users[name] = password
    return users


def _path(root_path: str) -> str:
    """Return a root path with a leading and no trailing slash; "" for the root."""
    path = "/" + root_path.strip("/") if root_path.strip("/") else ""
    if not re.fullmatch(r"(/[\w.~%-]+)*", path, re.ASCII):
        raise UsageError(f"--root-path {root_path!r} is not a path.", "Write it like /vqa.")
    return path


def _lock(folder: Path) -> BaseFileLock | None:
    """Lock the data folder, and warn if another server uses it.

    Returns None then, and on file systems without locks.
    """
    from filelock import Timeout

    from vqa_app.files import lock_file

    try:
        return lock_file(folder / ".lock")
    except Timeout:
        print(
            "Warning: another server uses this data folder. Its running answers and training are "
            "shown here as stopped.",
            file=sys.stderr,
            flush=True,
        )
    return None


def _report_load_failure(pool: EnginePool) -> None:
    """Print to the terminal if the model that the server was started with fails to load."""
    try:
        pool.wait()
    except VqaError:
        if (status := pool.status()).phase == "failed":  # not if the server is shutting down
            print(f"Error: {status.message}", file=sys.stderr, flush=True)


def _open(address: str) -> None:
    import webbrowser

    webbrowser.open(address)
