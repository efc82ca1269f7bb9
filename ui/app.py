"""The ASGI application: the page, its routes, and the endpoints for programs, guarded."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import socket
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from starlette.types import ASGIApp

from ui.chat.service import ChatService
from ui.storage.database import Store
from ui.storage.picture_files import PictureStore
from ui.teaching.taught_rows import TaughtRowStore
from ui.teaching.training import TrainingService
from vqa_app.engine.protocol import Engine
from vqa_app.errors import UsageError
from vqa_app.pictures.picture import ImageLimits
from vqa_app.serving.engine_pool import EnginePool, LoadProgress, ModelChoice
from vqa_app.serving.guard import AccessRules, Guard
from vqa_app.serving.listener import serve
from vqa_app.serving.redact import hide_folder

if TYPE_CHECKING:
    from fastapi import FastAPI

    from vqa_app.serving.openai_api import ChatApi

STATIC = Path(__file__).parent / "static"
UNUSED_PICTURE_SECONDS = 24 * 3600
"""Age from which pictures that no question uses are deleted when the server starts."""

REACHABLE = re.compile(
    r"/|/(healthz|readyz|metrics|config|favicon\.ico|robots\.txt)/?|/vqa/.+|/v1/.+|/static/fonts/.+"
    r"|/gradio_api/(info|upload|upload_progress|cancel|reset|startup-events|app_id)/?"
    r"|/gradio_api/call/chat(/.*)?|/gradio_api/(heartbeat|queue)/.+",
    re.DOTALL,
)
"""The paths that the page and programs need. Gradio has more: `file=` and `proxy=` fetch URLs,
`deep_link` writes files, and `dev/reload` never ends."""


@dataclass(frozen=True)
class Application:
    """The application with the services behind it."""

    asgi: ASGIApp
    service: ChatService
    taught_rows: TaughtRowStore
    training: TrainingService
    api: ChatApi

    def serve(self, listener: socket.socket, stop: Callable[[], None] = lambda: None) -> None:
        """Serve until Ctrl-C or SIGTERM, then close.

        Args:
            listener: See `vqa_app.serving.listener.serve`.
            stop: Called when the signal arrives, before anything else.
        """

        def stop_all() -> None:
            stop()
            self._stop()

        try:
            serve(self.asgi, listener, stop_all)
        finally:
            self.close()

    def _stop(self) -> None:
        """Stop running answers, then a training, which takes longest to save its current step."""
        self.service.stop_all()
        self.api.stop_all()
        self.training.close()

    def close(self, patience: float = 0.5) -> None:
        """Stop running answers and a training, and release models and files.

        Args:
            patience: Seconds to wait in total; whatever takes longer is abandoned.
        """
        end = time.monotonic() + patience
        self.api.stop_all()
        for close in (self.training.close, self.service.stop_all, self.service.pool.close):
            close(max(0.0, end - time.monotonic()))
        self.service.store.close()


def exit_process() -> NoReturn:
    """End the process at once.

    Everything is stored by now, and an orderly exit of torch and gradio takes seconds.
    """
    shutil.rmtree(_private_folder(), ignore_errors=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _mount(app: FastAPI, service: ChatService, root_path: str) -> None:
    """Add the endpoint for programs to the application, without any of Gradio's extras."""
    from ui.web.gradio_endpoint import endpoint, mount_gradio_app

    mount_gradio_app(
        app,
        endpoint(service),
        "/",
        favicon_path=str(STATIC / "icon.svg"),
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=service.picture_store.limits.max_bytes,
        root_path=root_path or None,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
    )


@cache
def _private_folder() -> str:
    """Return a temporary folder of this process, which is deleted when it ends."""
    folder = tempfile.mkdtemp(prefix="vqa-app-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _open(data_dir: Path, limits: ImageLimits | None) -> tuple[Store, PictureStore]:
    """Open a data folder, and delete old pictures that no question uses.

    Raises:
        UsageError: The folder cannot be used, or its database is damaged.
    """
    file = data_dir / "chats.sqlite"
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        picture_store = PictureStore(data_dir / "pictures", limits)
        store = Store(file, picture_store.remove)
        store.remove_deleted(time.time())  # nobody can undo that any more
        store.forget_unused_pictures(time.time() - UNUSED_PICTURE_SECONDS)
    except (OSError, sqlite3.OperationalError) as error:
        raise UsageError(
            f"The data folder {data_dir} cannot be used: {_reason(error)}.",
            "Choose another with --data-dir.",
        ) from error
    except sqlite3.DatabaseError as error:
        raise UsageError(
            f"{file} is damaged: {error}.",
            "Move it away to start a new one, or choose another folder with --data-dir.",
        ) from error
    return store, picture_store


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def create_application(
    data_dir: Path,
    load: Callable[[ModelChoice, LoadProgress], Engine],
    choices: Callable[[], Iterable[ModelChoice]],
    default: str,
    *,
    users: dict[str, str] | None = None,
    hosts: Iterable[str] = (),
    root_path: str = "",
    allow_any_model: bool = False,
    picture_hosts: Iterable[str] = (),
    limits: ImageLimits | None = None,
    train: Callable[..., Any] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    may_delete_models: Callable[[str], bool] = lambda owner: False,
) -> Application:
    """Build the application, without loading a model.

    Args:
        data_dir: Folder for conversations, pictures, taught rows and runs; created if missing.
        load: Creates engines; see `vqa_app.serving.engine_pool.EnginePool`.
        choices: Returns the available models.
        default: Key of the model that answers at first.
        users: Passwords by user name; empty for a page without passwords.
        hosts: Additional host names to answer to.
        root_path: Path under which a proxy serves the page, for example `/vqa`.
        allow_any_model: Whether people may add hub models in the browser.
        picture_hosts: Hosts from which people may add pictures by address.
        limits: Limits of pictures that people add.
        train: Trains a model; see `ui.teaching.training.TrainingService`.
        device: Where to train, as `finetune.config.FinetuneConfig` takes it, and where `load`
            loads models.
        dtype: The precision in which `load` loads models.
        may_delete_models: Tells of an owner whether they may delete downloaded models, which are
            everyone's.

    Raises:
        UsageError: The folder cannot be used.
    """
    # Gradio reads these when it is imported. Uploads go to a folder of this process alone.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = _private_folder()
    from fastapi import FastAPI

    from ui.web.gradio_endpoint import ExplainMalformedCalls
    from ui.web.page import page_routes
    from ui.web.routes import MAX_IMPORT, data_routes
    from vqa_app.serving.embeddings import Embedder, load_builtin
    from vqa_app.serving.openai_api import MAX_BODY, ChatApi, metrics_routes, openai_routes

    store, picture_store = _open(data_dir, limits)
    hide_folder(data_dir)
    pool = EnginePool(load, choices, default)
    service = ChatService(
        store,
        picture_store,
        pool,
        allow_any_model,
        data_dir / "runs",
        picture_hosts,
        may_delete_models=may_delete_models,
        device=device,
        dtype=dtype,
    )
    app = FastAPI(title="Look & Ask", docs_url=None, redoc_url=None, openapi_url=None)
    taught_rows = TaughtRowStore(data_dir / "taught", picture_store)
    training = TrainingService(data_dir, service, taught_rows, train, device)
    app.include_router(data_routes(service, taught_rows, training))
    app.include_router(page_routes(service, taught_rows, training))
    api = ChatApi(
        service.models,
        media_hosts=service.picture_hosts,
        limits=picture_store.limits,
        embedder=Embedder(partial(load_builtin, device)),
    )
    app.include_router(openai_routes(api))
    app.include_router(metrics_routes(api))
    _mount(app, service, root_path)
    rules = AccessRules(
        hosts=frozenset(hosts),
        users=users or {},
        larger={
            "/vqa/pictures": max(picture_store.limits.max_bytes, AccessRules.max_body),
            "/vqa/pdf-pages": max(picture_store.limits.max_bytes, AccessRules.max_body),
            "/vqa/conversations": MAX_IMPORT,
            "/vqa/taught": MAX_IMPORT,
            "/vqa/datasets": MAX_IMPORT,
            "/gradio_api/upload": MAX_IMPORT,
            "/v1/": MAX_BODY,
        },
        root_path=root_path,
        reachable=REACHABLE,
    )
    guard = Guard(ExplainMalformedCalls(app), rules)
    return Application(guard, service, taught_rows, training, api)
