"""Routes for pictures, exported and imported files, health checks and static files."""

from __future__ import annotations

import base64
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.routing import APIRoute
from PIL import Image
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool

from ui import texts
from ui.chat import export
from ui.chat.picture_edits import edit_picture
from ui.chat.requests import error_update, parse_request, require_owner
from ui.chat.service import ChatService
from ui.storage.picture_files import LARGE, THUMBNAIL
from ui.teaching.taught_rows import TaughtRowStore
from ui.teaching.training import TrainingService
from vqa_app.errors import UsageError, VqaError
from vqa_app.pictures.documents import is_document, preview_pages

STATIC = Path(__file__).parent.parent / "static"
SCRIPTS = (
    "core",
    "texts",
    "keyboard",
    "turns",
    "followups",
    "composer",
    "chats",
    "sidebar",
    "sheet",
    "models",
    "region",
    "documents",
    "drawing",
    "settings",
    "prompts",
    "teach",
    "train",
    "library",
    "compare",
    "tabs",
)
"""The page's scripts, in loading order."""
_KINDS = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_EXPORTS = {"json": "application/json", "html": "text/html", "md": "text/markdown"}
_REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"
"""What a run's report needs: it is one file, without scripts."""
_FOREVER = {"cache-control": "private, max-age=31536000, immutable"}
MAX_IMPORT = 200 * 2**20
"""Largest file with conversations or data, in bytes; pictures have limits of their own."""
MAX_ADDRESS = 8192
"""Longest web address of a picture, and longest request for an edited picture, in bytes."""
MAX_DOCUMENTS = 2
"""Documents that are drawn at once; each may need a core and 1.5 GiB."""
MAX_DOWNLOADS = 4
"""Pictures that are downloaded at once; each holds a thread."""
_IMPORT_LIMIT = f"At most {MAX_IMPORT // 2**20} MB fit."


def data_routes(
    service: ChatService, taught_rows: TaughtRowStore, training: TrainingService
) -> APIRouter:
    """Return the routes for the data of the owners, and for static files."""
    router = APIRouter()
    documents, downloads = CapacityLimiter(MAX_DOCUMENTS), CapacityLimiter(MAX_DOWNLOADS)
    picture_limit = service.picture_store.limits.max_bytes

    def too_large(name: str) -> Response:
        size = f"{picture_limit / 2**20:.3g} MB"
        return problem(
            UsageError(f"{name[:80]} is larger than {size}.", "Use a smaller picture."), 413
        )

    @router.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/readyz")
    def readyz() -> Response:
        phase = service.pool.status().phase
        if phase == "absent" and service.pool.has_loaded_model():
            phase = "ready"  # the default was evicted, and is loaded again when it is needed
        return JSONResponse({"status": phase}, 200 if phase == "ready" else 503)

    @router.post("/vqa/pictures")
    async def add_picture(
        request: Request, name: str = "picture", page: int | None = None
    ) -> Response:
        data = await read_body(request, picture_limit)
        if data is None:
            return too_large(name)
        return await _json_response(
            lambda: service.add_picture(
                require_owner(request.state.owner), data, name[:120], page=page
            ),
            documents if is_document(data) else None,
        )

    @router.post("/vqa/pictures/{digest}/edits")
    async def add_edited_picture(request: Request, digest: str) -> Response:
        data = await read_body(request, MAX_ADDRESS)
        return await _json_response(
            lambda: edit_picture(
                service, require_owner(request.state.owner), digest, parse_request(data or b"")
            )
        )

    @router.post("/vqa/picture-address")
    async def add_picture_from_address(request: Request) -> Response:
        address = (await read_body(request, MAX_ADDRESS) or b"").decode("utf-8", "replace")
        return await _json_response(
            lambda: service.add_picture_from(require_owner(request.state.owner), address),
            downloads,
        )

    @router.post("/vqa/pdf-pages")
    async def pdf_pages(request: Request, name: str = "document", first: int = 1) -> Response:
        data = await read_body(request, picture_limit)
        if data is None:
            return too_large(name)

        def previews() -> dict[str, Any]:
            require_owner(request.state.owner)
            limits = service.picture_store.limits
            found = preview_pages(data, name[:120], first=first, limits=limits)
            images = [image and _to_data_uri(image) for image in found.images]
            return {"pages": found.pages, "first": found.first, "images": images}

        return await _json_response(previews, documents)

    @router.get("/vqa/pictures/{digest}")
    async def picture(request: Request, digest: str, size: str = "full") -> Response:
        longest = {"small": THUMBNAIL, "large": LARGE}.get(size)
        if service.store.picture(request.state.owner, digest) is None:
            return missing()
        try:
            if longest is not None:
                file = await run_in_threadpool(service.picture_store.resized, digest, longest)
            else:
                file = service.picture_store.file(digest)
        except VqaError:
            return missing()
        if not file.is_file():
            return missing()
        return FileResponse(file, headers=_FOREVER)

    @router.get("/vqa/conversations/{conversation}.{kind}")
    async def download(request: Request, conversation: str, kind: str) -> Response:
        owner = request.state.owner
        if kind not in _EXPORTS or not service.store.owns(owner, conversation):
            return missing()

        def write() -> str:
            store, pictures = service.store, service.picture_store
            if kind == "json":
                return export.to_json(store, pictures, owner, conversation)
            if kind == "md":
                return export.to_markdown(store, owner, conversation, language_of(request))
            return export.to_html(store, pictures, owner, conversation, language_of(request))

        text = await run_in_threadpool(write)
        name = export.file_name(service.store.title(owner, conversation)) or "conversation"
        return Response(text, media_type=_EXPORTS[kind], headers=_attachment(f"{name}.{kind}"))

    @router.get("/vqa/chats.zip")
    async def all_chats(request: Request) -> Response:
        def write() -> str:
            owner = request.state.owner
            with tempfile.NamedTemporaryFile(suffix=".zip", delete=False) as file:
                try:
                    export.write_all(
                        service.store, service.picture_store, owner, language_of(request), file
                    )
                except BaseException:
                    file.close()  # Windows deletes no open file
                    os.unlink(file.name)
                    raise
            return file.name

        file = await run_in_threadpool(write)
        return FileResponse(
            file,
            media_type="application/zip",
            headers=_attachment("chats.zip"),
            background=BackgroundTask(os.unlink, file),
        )

    @router.post("/vqa/conversations")
    async def import_conversation(request: Request) -> Response:
        def store(owner: str, data: bytes) -> dict[str, Any]:
            return {
                "conversation": export.from_json(service.store, service.picture_store, owner, data)
            }

        return await _store_file(request, store)

    @router.get("/vqa/runs/{name}/report.html")
    async def report(request: Request, name: str) -> Response:
        text = await run_in_threadpool(training.report, request.state.owner, name)
        if text is None:
            return missing()
        return Response(
            text, media_type="text/html", headers={"content-security-policy": _REPORT_POLICY}
        )

    @router.get("/vqa/taught.zip")
    async def taught_zip(request: Request) -> Response:
        data = await run_in_threadpool(taught_rows.export, request.state.owner)
        return Response(
            data,
            media_type="application/zip",
            headers={"content-disposition": "attachment; filename=taught.zip"},
        )

    @router.post("/vqa/taught")
    async def import_rows(request: Request, name: str = "") -> Response:
        def store(owner: str, data: bytes) -> dict[str, Any]:
            count, problems = taught_rows.import_rows(owner, data, name)
            return {"count": count, "problems": problems[:20]}

        return await _store_file(request, store)

    @router.post("/vqa/datasets")
    async def import_data(request: Request, name: str = "data set") -> Response:
        def store(owner: str, data: bytes) -> dict[str, Any]:
            return {"done": True, **asdict(training.upload(owner, data, name))}

        return await _store_file(request, store)

    @router.get("/vqa/page.js")
    def script(language: str = texts.ENGLISH) -> Response:
        parts = [texts.to_script(language)]
        parts += [(STATIC / f"{name}.js").read_text("utf-8") for name in SCRIPTS]
        return Response(
            "".join(parts), media_type="text/javascript", headers={"cache-control": "no-cache"}
        )

    @router.get("/vqa/{name}")
    def static(name: str) -> Response:
        file = STATIC / name
        if not re.fullmatch(r"[a-z]+\.[a-z]+", name) or file.suffix not in _KINDS:
            return missing()
        if not file.is_file():
            return missing()
        return FileResponse(
            file, media_type=_KINDS[file.suffix], headers={"cache-control": "no-cache"}
        )

    for route in router.routes:
        if isinstance(route, APIRoute) and route.methods and "GET" in route.methods:
            route.methods.add("HEAD")
    return router


async def _store_file(request: Request, store: Callable[[str, bytes], dict[str, Any]]) -> Response:
    """Pass the uploaded file of a request to `store`, and return its result as JSON."""
    data = await read_body(request, MAX_IMPORT)
    if data is None:
        return problem(UsageError("The file is too large.", _IMPORT_LIMIT), 413)
    return await _json_response(lambda: store(require_owner(request.state.owner), data))


async def _json_response(
    run: Callable[[], dict[str, Any]], limiter: CapacityLimiter | None = None
) -> Response:
    """Run a function in a thread; return its result as JSON, or its error as the page shows it."""
    try:
        return JSONResponse(await to_thread.run_sync(run, limiter=limiter))
    except Exception as error:
        return problem(error, 400 if isinstance(error, VqaError) else 500)


def _to_data_uri(image: Image.Image) -> str:
    stream = BytesIO()
    image.save(stream, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def _attachment(name: str) -> dict[str, str]:
    """Return the headers of a file that the browser saves under a name."""
    return {"content-disposition": "attachment; filename*=UTF-8''" + quote(name)}


def problem(error: Exception, status: int) -> Response:
    """Return the response for an error, with the message that the page shows."""
    return JSONResponse(error_update(error), status)


def language_of(request: Request) -> str:
    """Return the tag of the language in which a visitor reads the page."""
    accepted = request.headers.get("accept-language", "")
    return texts.choose_language(accepted, request.cookies.get(texts.COOKIE, ""))


def missing() -> Response:
    """Return the response for something that does not exist."""
    return Response("Not found.\n", 404, media_type="text/plain")


async def read_body(request: Request, limit: int) -> bytes | None:
    """Read the body of a request; return None as soon as it is longer than `limit` bytes."""
    if int(request.headers.get("content-length", 0)) > limit:
        return None
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > limit:
            return None
    return bytes(data)
