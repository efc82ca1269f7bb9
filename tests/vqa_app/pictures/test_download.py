"""Download pictures from a server on this machine."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from tests.waiting import PATIENCE
from vqa_app.errors import ImageError, UsageError
from vqa_app.pictures import download
from vqa_app.pictures.download import (
    allowed_host,
    fetch_for_visitor,
    fetch_picture,
    is_public,
)
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
            case "/to":
                self.redirect(self.path.partition("?")[2])
            case "/host":
                self.answer(self.headers["Host"].encode(), "text/plain")
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
    ("url", "words"),
    [
        ("http://127.0.0.1:1/a.png", "127.0.0.1: it refuses connections"),
        ("http://", "has no host name"),
        ("http://[::1", ""),
        ("http://a\n", "the address is not valid"),
    ],
)
def test_an_invalid_or_unreachable_address_is_rejected(url: str, words: str) -> None:
    with pytest.raises(ImageError) as refusal:
        fetch_picture(url)
    assert words in refusal.value.problem


# For visitors of a server


@pytest.fixture
def public(site: str, monkeypatch) -> str:
    """Make the site's own address count as public, under a host name; return the host."""
    port = site.rpartition(":")[2]
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: real("127.0.0.1", *rest, **more)
    )
    monkeypatch.setattr(download, "is_public", lambda address: address == "127.0.0.1")
    return f"pictures.example.com:{port}"


@pytest.mark.parametrize("path", ["/cat.png", "/moved"])
def test_a_visitor_gets_a_picture_of_an_allowed_host(public: str, path: str) -> None:
    assert fetch_for_visitor(f"http://{public}{path}", {public}, 10_000) == (png(), "cat.png")


def test_the_host_is_told_its_own_name(public: str) -> None:
    assert fetch_for_visitor(f"http://{public}/host", {public}, 10_000)[0] == public.encode()


@pytest.mark.parametrize(
    "url",
    [
        "http://other.example.com/a.png",
        "http://{host}@other.example.com/a.png",
        "http://ann:secret@{host}/cat.png",
        "http://other.example.com#@{host}/cat.png",
        "http://pictures.example.com/cat.png",
        "https://pictures.example.com:8443/cat.png",
        "http://x.{host}/cat.png",
        "http://127.0.0.1/cat.png",
        "file:///etc/passwd",
        "ftp://{host}/cat.png",
        "//{host}/cat.png",
        "cat.png",
    ],
)
def test_a_visitor_gets_nothing_of_other_hosts(public: str, url: str, monkeypatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("looked up"))
    with pytest.raises(ImageError, match=r"not allowed here|Cannot download"):
        fetch_for_visitor(url.replace("{host}", public), {public}, 10_000)


@pytest.mark.parametrize(
    "target", ["http://other.example.com/cat.png", "http://127.0.0.1/cat.png", "file:///etc/passwd"]
)
def test_redirects_of_an_allowed_host_are_checked(public: str, target: str) -> None:
    with pytest.raises(ImageError, match=r"not allowed here|Cannot download"):
        fetch_for_visitor(f"http://{public}/to?{target}", {public}, 10_000)


def test_a_visitor_is_not_sent_in_circles(public: str) -> None:
    with pytest.raises(ImageError, match="redirects more than"):
        fetch_for_visitor(f"http://{public}/loop", {public}, 10_000)


def test_a_visitors_download_is_limited(public: str) -> None:
    with pytest.raises(ImageError, match="larger than"):
        fetch_for_visitor(f"http://{public}/endless", {public}, 300_000)
    with pytest.raises(ImageError, match="in time"):
        fetch_for_visitor(f"http://{public}/trickle", {public}, 300_000, deadline=0.3)
    with pytest.raises(ImageError, match="responded with 404"):
        fetch_for_visitor(f"http://{public}/gone", {public}, 300_000)


def test_an_allowed_name_that_leads_into_a_private_network_is_refused(site: str) -> None:
    host = f"localhost:{site.rpartition(':')[2]}"
    with pytest.raises(ImageError, match="localhost is in a private network"):
        fetch_for_visitor(f"http://{host}/cat.png", {host}, 10_000)


def test_a_name_that_also_has_a_private_address_is_refused(monkeypatch) -> None:
    found = [(0, 0, 0, "", (address, 80)) for address in ("93.184.215.14", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(ImageError, match="private network"):
        fetch_for_visitor("http://a.example.com/x.png", {"a.example.com"}, 10_000)


def test_a_name_that_does_not_exist_is_named(monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(ImageError, match=r"Could not reach a\.example\.com: its name is not"):
        fetch_for_visitor("http://a.example.com/x.png", {"a.example.com"}, 10_000)


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.1",
        "172.16.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fd00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "64:ff9b::10.0.0.1",
        "2002:7f00:1::1",
    ],
)
def test_all_other_addresses_are_not(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("host", ["Images.Example.com", " a.example:8080 ", "localhost"])
def test_hosts_of_the_operators_list_are_normalised(host: str) -> None:
    assert allowed_host(host) == host.strip().lower()


@pytest.mark.parametrize("host", ["", "https://a.example", "a.example/", "*.example", "a b", "a:x"])
def test_other_entries_of_the_list_are_refused(host: str) -> None:
    with pytest.raises(UsageError, match="is not a host name"):
        allowed_host(host)
