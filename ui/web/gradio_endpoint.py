"""The endpoint for programs, `/chat`: takes a question with pictures and streams the answer.

Each call is independent. Nothing of it is stored, and its pictures are deleted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components.multimodal_textbox import MultimodalData
from gradio.utils import get_upload_folder
from pydantic import ValidationError

from ui.chat.requests import parse_question, user_message
from ui.chat.service import ChatService
from ui.chat.settings import ChatSettings
from ui.chat.stream import stream_text
from vqa_app.errors import UsageError
from vqa_app.pictures.picture import open_picture
from vqa_app.prompts.conversation import Conversation

MAX_CONCURRENT = 4
"""Calls that may run at once; each holds one of the server's roughly 40 threads."""
LOAD_TIMEOUT = 600
"""Seconds that a call waits for the model to load."""
_NOT_UPLOADED = "Upload files first; paths and addresses are not accepted."
_FORMAT = 'Send {"text": "your question", "files": []}, files as /gradio_api/upload returns them.'


def endpoint(service: ChatService) -> gr.Blocks:
    """Return Gradio's part of the application: the endpoint, without a page."""
    with gr.Blocks(
        title="Look & Ask",
        analytics_enabled=False,
        delete_cache=(3600, 3600),  # uploads that no question used
    ) as blocks:
        _add_chat(service)
    return blocks


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
        except ValidationError:
            raise gr.Error(_FORMAT, print_exception=False) from None


def _take_uploads_only(message: gr.MultimodalTextbox) -> None:
    """Refuse files that were not uploaded before Gradio copies or downloads them.

    Gradio itself checks paths only in an application that it launched, not in a mounted one.
    """
    move = message.async_move_resource_to_block_cache

    async def move_upload(path: str | Path | None) -> str | None:
        if path is not None and not _is_upload(path):
            raise gr.Error(_NOT_UPLOADED, print_exception=False)
        return await move(path)

    # Not a subclass: Gradio would write a .pyi file beside this module.
    message.async_move_resource_to_block_cache = move_upload  # type: ignore[method-assign, assignment]


def _is_upload(path: str | Path) -> bool:
    return Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve())


def _answer(service: ChatService, message: dict[str, Any] | None) -> Iterator[Any]:
    if message is None:
        raise UsageError("There is no question.", _FORMAT)
    files = list(message.get("files") or [])
    if not all(map(_is_upload, files)):  # a file that claims to be a stream is not moved
        raise UsageError(_NOT_UPLOADED)
    try:
        question = parse_question(message.get("text"), len(files))
        # The uploaded copies have names of Gradio's own.
        pictures = [
            open_picture(Path(file), name=f"picture {number}", limits=service.picture_store.limits)
            for number, file in enumerate(files, 1)
        ]
    finally:
        for file in files:
            with contextlib.suppress(OSError):
                Path(file).unlink()
    service.pool.start_loading()
    conversation = Conversation.ask(question, pictures)
    with service.pool.lease(timeout=LOAD_TIMEOUT) as engine, service.cancel_event() as cancel:
        options = ChatSettings().options(engine.info.defaults)
        for news in stream_text(engine, conversation, options, cancel):
            yield news[0] if news else gr.skip()
