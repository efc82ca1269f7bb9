"""Download pictures from a server on this machine."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from tests.waiting import PATIENCE
from vqa_app.errors import ImageError
from vqa_app.pictures.download import fetch_picture, is_url
from vqa_app.pictures.picture import ImageLimits

ended = threading.Event()
"""Set at the end of the tests, to release requests that the server keeps waiting."""


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 7), (1, 2, 3)).save(buffer, "PNG")
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass

    def answer(self, body: bytes, kind: str = "image/png", code: int = 200) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def redirect(self, where: str) -> None:
        self.send_response(302)
        self.send_header("Location", where)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        match self.path.split("?")[0]:
            case "/cat.png":
                self.answer(png())
            case "/mislabelled":
                self.answer(png(), "text/html")
            case "/page.png":
                self.answer(b"<!doctype html><html>Sign in</html>")
            case "/moved":
                self.redirect("/cat.png")
            case "/to-file":
                self.redirect("file:///etc/passwd")
            case "/loop":
                self.redirect("/loop")
            case "/endless":
                self.send_response(200)
                self.end_headers()
                try:
                    while True:
                        self.wfile.write(b"\0" * 65536)
                except OSError:
                    return
            case "/trickle":
                self.send_response(200)
                self.end_headers()
                try:
                    while True:
                        self.wfile.write(b"\0")
                        time.sleep(0.02)
                except OSError:
                    return
            case "/silent":
                ended.wait(PATIENCE)
            case _:
                self.answer(b"no", "text/plain", 404)


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    ended.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("path", ["/cat.png", "/mislabelled", "/moved", "/cat.png?size=1#x"])
def test_a_picture_is_recognised_by_its_content(site: str, path: str) -> None:
    picture = fetch_picture(site + path)
    assert picture.image.size == (5, 7)


def test_the_name_is_the_last_part_of_the_address(site: str) -> None:
    assert fetch_picture(site + "/moved").name == "cat.png"


def test_the_error_for_a_web_page_says_so(site: str) -> None:
    with pytest.raises(ImageError, match=r"page\.png seems to be a web page"):
        fetch_picture(site + "/page.png")


def test_the_error_for_a_missing_picture_names_the_status(site: str) -> None:
    with pytest.raises(ImageError, match="responded with 404"):
        fetch_picture(site + "/gone.png?token=secret")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/a.png", "gopher://host/a"])
def test_other_schemes_are_rejected(url: str) -> None:
    with pytest.raises(ImageError, match="Cannot download pictures from"):
        fetch_picture(url)


def test_a_redirect_to_another_scheme_is_rejected(site: str) -> None:
    with pytest.raises(ImageError, match="Cannot download pictures from file://"):
        fetch_picture(site + "/to-file")


def test_a_redirect_loop_ends(site: str) -> None:
    with pytest.raises(ImageError, match="redirects more than"):
        fetch_picture(site + "/loop")


def test_an_endless_download_ends_at_the_limit(site: str) -> None:
    with pytest.raises(ImageError, match="larger than"):
        fetch_picture(site + "/endless", ImageLimits(max_bytes=300_000))


def test_a_silent_server_times_out(site: str) -> None:
    with pytest.raises(ImageError, match="in time"):
        fetch_picture(site + "/silent", timeout=0.1)


def test_a_slow_download_ends_at_the_deadline(site: str) -> None:
    with pytest.raises(ImageError, match="in time"):
        fetch_picture(site + "/trickle", deadline=0.3)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/a.png", "http://", "http://[::1", "http://a\n"]
)
def test_an_invalid_or_unreachable_address_is_rejected(url: str) -> None:
    with pytest.raises(ImageError):
        fetch_picture(url)


def test_addresses_are_told_from_paths_and_questions() -> None:
    assert is_url("https://example.com/a.png")
    assert is_url("ftp://host/x")
    assert not is_url("photos/a.png")
    assert not is_url("C:\\photos\\a.png")
    assert not is_url("What is on the mat?")
