"""The endpoint for programs, `/chat`: takes a question with pictures and streams the answer.

Each call is independent, and nothing of it is stored. Uploads are deleted by their age: identical
files share one upload, so a call that ends cannot tell whether another still needs it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui.chat.requests import parse_question, user_message
from ui.chat.service import ChatService
from ui.chat.settings import ChatSettings
from ui.chat.stream import stream_text
from vqa_app.errors import UsageError
from vqa_app.pictures.picture import open_picture
from vqa_app.prompts.conversation import Conversation
from vqa_app.proxies import without_proxies

with without_proxies():  # Gradio makes HTTP clients when it is imported, which we do not need
    import gradio as gr
    from gradio import mount_gradio_app as mount_gradio_app
    from gradio.components.multimodal_textbox import MultimodalData
    from gradio.utils import get_upload_folder

log = logging.getLogger(__name__)

MAX_CONCURRENT = 4
"""Calls that may run at once; each holds one of the server's roughly 40 threads."""
LOAD_TIMEOUT = 600
"""Seconds that a call waits for the model to load."""
UPLOAD_SECONDS = 3600
"""Seconds after which an upload is deleted, unless it is uploaded again."""
_CLEANING_SECONDS = 600
"""Seconds between two searches for such uploads."""
_CALL = re.compile(r"/gradio_api/(call|queue|cancel|reset)\b")
_NOT_UPLOADED = (
    "A file of this message is no upload of the last hour. Upload files first: paths and addresses"
    " are not accepted."
)
_FORMAT = 'Send {"text": "your question", "files": []}, files as /gradio_api/upload returns them.'


def endpoint(service: ChatService) -> gr.Blocks:
    """Return Gradio's part of the application: the endpoint, without a page."""
    with gr.Blocks(
        title="Look & Ask",
        analytics_enabled=False,
        delete_cache=(_CLEANING_SECONDS, UPLOAD_SECONDS),
    ) as blocks:
        _add_chat(service)
    _explain_refusals(blocks)
    return blocks


def _explain_refusals(blocks: gr.Blocks) -> None:
    """Tell callers of malformed calls what to send, where Gradio would only log a traceback."""
    process = blocks.process_api

    async def process_or_explain(*arguments: Any, **options: Any) -> dict[str, Any]:
        try:
            return await process(*arguments, **options)
        except gr.Error:
            raise
        except Exception as error:  # from Gradio's own checks: `chat` raises nothing else
            log_refusal(error)
            raise gr.Error(_FORMAT, print_exception=False) from None

    blocks.process_api = process_or_explain  # type: ignore[method-assign]


def log_refusal(error: BaseException) -> None:
    """Log in one line why a call was refused."""
    reason = " ".join(str(error).split())[:200].encode("ascii", "backslashreplace").decode()
    log.warning("A malformed call of /chat was refused (%s: %s).", type(error).__name__, reason)


class ExplainMalformedCalls:
    """ASGI middleware that answers calls which Gradio cannot parse with 400 and the right format.

    Gradio answers them with 500 and a traceback in the log: its routes look up what the body names.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or not _CALL.search(scope["path"]):
            await self.app(scope, receive, send)
            return
        started, failed = False, False

        async def send_unless_failed(message: Message) -> None:
            nonlocal started, failed
            if message["type"] == "http.response.start":
                failed = message["status"] == 500
                started = started or not failed
            if not failed:
                await send(message)

        error: Exception | None = None
        try:
            await self.app(scope, receive, send_unless_failed)
        except Exception as raised:
            if started:
                raise
            error = raised
        if not started:
            log_refusal(error or ValueError("Gradio answered 500"))
            await JSONResponse({"error": _FORMAT}, 400)(scope, receive, send)


def _add_chat(service: ChatService) -> None:
    message = gr.MultimodalTextbox(visible=False, file_count="multiple", label="Question")
    message.data_model = _Message
    _take_uploads_only(message)
    answer = gr.Textbox(visible=False, label="Answer")
    send = gr.Button(visible=False)

    def chat(message: dict[str, Any] | None) -> Iterator[Any]:
        """Answer one question about its pictures.

        `message` is `{"text": ..., "files": [...]}`; each value yielded is the answer so far.
        """
        try:
            yield from _answer(service, message)
        except Exception as error:
            raise gr.Error(user_message(error), print_exception=False) from None

    send.click(
        chat,
        message,
        answer,
        api_name="chat",
        concurrency_limit=MAX_CONCURRENT,
        show_progress="hidden",
    )


class _Message(MultimodalData):
    """Reports an invalid message to the caller, where Gradio would only log it."""

    @classmethod
    def model_validate(cls, *arguments: Any, **options: Any) -> _Message:
        """Validate a message.

        Raises:
            gradio.Error: It has another format.
        """
        try:
            return super().model_validate(*arguments, **options)
        except ValidationError as error:
            log_refusal(error)
            raise gr.Error(_FORMAT, print_exception=False) from None


def _take_uploads_only(message: gr.MultimodalTextbox) -> None:
    """Refuse files that were not uploaded before Gradio copies or downloads them.

    Gradio itself checks paths only in an application that it launched, not in a mounted one.
    """
    move = message.async_move_resource_to_block_cache

    async def move_upload(path: str | Path | None) -> str | None:
        if path is not None and not _is_upload(path):
            log_refusal(UsageError("It names a file that was not uploaded."))
            raise gr.Error(_NOT_UPLOADED, print_exception=False)
        return await move(path)

    # Not a subclass: Gradio would write a .pyi file beside this module.
    message.async_move_resource_to_block_cache = move_upload  # type: ignore[method-assign, assignment]


def _is_upload(path: str | Path) -> bool:
    try:
        file = Path(path).resolve()
        return file.is_file() and file.is_relative_to(Path(get_upload_folder()).resolve())
    except (OSError, ValueError):  # too long, or with a NUL or a lone surrogate
        return False


def _answer(service: ChatService, message: dict[str, Any] | None) -> Iterator[Any]:
    if message is None:
        raise UsageError("There is no question.", _FORMAT)
    files = list(message.get("files") or [])
    if not all(map(_is_upload, files)):  # a file that claims to be a stream is not moved
        log_refusal(UsageError("It names a file that was not uploaded."))
        raise UsageError(_NOT_UPLOADED)
    question = parse_question(message.get("text"), len(files))
    # The uploaded copies have names of Gradio's own.
    pictures = [
        open_picture(Path(file), name=f"picture {number}", limits=service.picture_store.limits)
        for number, file in enumerate(files, 1)
    ]
    service.pool.start_loading()
    conversation = Conversation.ask(question, pictures)
    with service.pool.lease(timeout=LOAD_TIMEOUT) as engine, service.cancel_event() as cancel:
        options = ChatSettings().options(engine.info.defaults)
        for news in stream_text(engine, conversation, options, cancel):
            yield news[0] if news else gr.skip()
