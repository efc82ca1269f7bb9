"""The page: our own markup inside Gradio's Blocks, joined by wires.

A wire is a hidden `gr.HTML` that carries JSON both ways: the page's script triggers its `submit`
event with a request, the handler's updates come back as its value. So Gradio's queue, sessions and
streaming carry everything, while the chat is drawn by `ui/static/*.js`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from ui.chat import attention_view
from ui.chat.comparison import side_by_side
from ui.chat.conversation_actions import act
from ui.chat.desk import Desk
from ui.chat.model_picker import pick
from ui.chat.requests import Request, Update, known, message_of
from ui.chat.warmup import Warming
from ui.teaching.row_actions import teach
from ui.teaching.taught_rows import Teaching
from ui.teaching.training import TrainingDesk
from ui.web.gradio_endpoint import add_endpoint
from vqa_app.serving.redact import sound

STATIC = Path(__file__).parent.parent / "static"
STREAMS = 64
"""Answers that may be under way at once, waiting ones included."""
LOOKS = 4
"""Looks that may wait for the model at once: each holds one of the server's about 40 threads."""
_serial = itertools.count(1)
# Gradio puts the head's scripts in while it builds the page, so ours may come later than this.
_ON_LOAD = """
const join = () => window.vqa?.wire
    ? window.vqa.wire("%s", {trigger, props, watch})
    : setTimeout(join, 10);
join();
"""


def theme() -> gr.themes.Base:
    font = [gr.themes.LocalFont("IBM Plex Sans", (400, 700)), "system-ui", "sans-serif"]
    mono = [gr.themes.LocalFont("IBM Plex Mono", (400, 700)), "ui-monospace", "monospace"]
    return gr.themes.Base(
        primary_hue="indigo", neutral_hue="slate", radius_size="lg", font=font, font_mono=mono
    )


def head() -> str:
    """What stands in the page's head: our script, from this server."""
    return '<script src="vqa/page.js"></script>'


def css() -> str:
    return (STATIC / "page.css").read_text("utf-8")


def build(desk: Desk, teaching: Teaching, training: TrainingDesk) -> gr.Blocks:
    """The whole page on a desk."""
    with gr.Blocks(
        title="Look & Ask",
        fill_width=True,
        analytics_enabled=False,
        delete_cache=(3600, 3600),  # uploads of programs that never asked
    ) as page:
        gr.HTML((STATIC / "page.html").read_text("utf-8"), elem_id="shell", apply_default_css=False)
        live = _wire("live")
        _streaming(_wire("ask"), desk.ask, live)
        _streaming(_wire("pick"), lambda owner, request: pick(desk, owner, request))
        _calling(_wire("act"), lambda owner, request: act(desk, owner, request))
        _calling(_wire("warm"), Warming(desk).begin)
        _calling(_wire("look"), lambda owner, request: _look(desk, owner, request), LOOKS)
        _calling(_wire("teach"), lambda owner, request: teach(desk, teaching, owner, request))
        _calling(_wire("train"), lambda owner, request: _train(training, owner, request))
        _streaming(_wire("compare"), lambda owner, request: side_by_side(desk, owner, request))
        add_endpoint(desk)
    return page


def _wire(name: str) -> gr.HTML:
    return gr.HTML(
        "",
        html_template="",
        js_on_load=_ON_LOAD % name,
        visible="hidden",
        elem_id=f"wire-{name}",
    )


def owner_of(request: gr.Request) -> str:
    """Who asks, as the guard around the server found out.

    Raises:
        UsageError: nobody can be told.
    """
    return known(request.request.scope["state"]["owner"] if request.request else "")


def _look(desk: Desk, owner: str, request: Request) -> Update:
    deed = attention_view.saw if request.get("do") == "saw" else attention_view.look
    return deed(desk, owner, request)


def _train(training: TrainingDesk, owner: str, request: Request) -> Update:
    match request.get("do"):
        case "check":
            return training.check(owner, request)
        case "start":
            return training.start(owner, request)
        case "go-on":
            return training.go_on(owner)
        case "stop":
            return training.stop(owner)
    return training.status(owner)


def _asked(event: gr.EventData) -> Request:
    """What the page sent."""
    return json.loads(sound(json.dumps(dict(event._data), ensure_ascii=False)))


def _packed(update: Update) -> str:
    # The number makes each value a new one: Gradio announces changes only.
    return json.dumps({**update, "n": next(_serial)}, ensure_ascii=False, allow_nan=False)


def _refused(error: Exception, number: int | None = None) -> str:
    return _packed({"error": message_of(error), "number": number})


def _calling(
    wire: gr.HTML, handler: Callable[[str, Request], Update], at_once: int = STREAMS
) -> None:
    """Joins a wire to a handler that gives one update."""

    def run(event: gr.EventData, request: gr.Request) -> str:
        number = None
        try:
            sent = _asked(event)
            number = sent.get("number")  # the reply brings it back
            return _packed({**handler(owner_of(request), sent), "number": number})
        except Exception as error:
            return _refused(error, number)

    _join(wire, run, [wire], at_once)


def _streaming(
    wire: gr.HTML,
    handler: Callable[[str, Request], Iterator[Update | None]],
    live: gr.HTML | None = None,
) -> None:
    """Joins a wire to a handler that gives many updates.

    Those with `live` go to a wire of their own, so that they cannot push out another kind.
    """

    def run(event: gr.EventData, request: gr.Request) -> Iterator[Any]:
        outputs = 1 if live is None else 2
        updates: Iterator[Update | None] = iter(())
        try:
            updates = handler(owner_of(request), _asked(event))
            for update in updates:
                if update is None:
                    yield gr.skip() if outputs == 1 else (gr.skip(), gr.skip())
                elif outputs == 1:
                    yield _packed(update)
                elif "live" in update:
                    yield gr.skip(), _packed(update)
                else:
                    yield _packed(update), gr.skip()
        except Exception as error:
            yield _refused(error) if outputs == 1 else (_refused(error), gr.skip())
        finally:
            if isinstance(updates, Generator):
                updates.close()

    _join(wire, run, [wire] if live is None else [wire, live])


def _join(
    wire: gr.HTML, run: Callable[..., Any], outputs: list[gr.HTML], at_once: int = STREAMS
) -> None:
    wire.submit(
        run,
        None,
        outputs,
        show_progress="hidden",
        trigger_mode="multiple",
        concurrency_limit=at_once,
        api_visibility="private",
    )
