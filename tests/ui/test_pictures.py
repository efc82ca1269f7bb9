"""The routes for pictures: documents, regions and rotations, pictures by address."""

from __future__ import annotations

import base64
import io
import threading
import time
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.documents import pdf, svg
from tests.fake_engine import FakeEngine
from tests.ui.server import running
from tests.waiting import PATIENCE
from vqa_app.errors import ImageError

HOST = "pictures.example.com"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    with running({"fake": FakeEngine()}, folder, picture_hosts=[HOST]) as found:
        yield found


def halves() -> bytes:
    """Return a picture of 40 × 20 pixels, red on the left and blue on the right."""
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (20, 0, 40, 20))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def add(client, data: bytes = b"", **query: Any) -> dict[str, Any]:
    answer = client.post("/vqa/pictures", params={"name": "cat.png", **query}, content=data)
    assert answer.status_code == 200, answer.text
    return answer.json()


def edit(client, digest: str, **request: Any) -> httpx.Response:
    return client.post(f"/vqa/pictures/{digest}/edits", json=request)


def stored(client, digest: str) -> Image.Image:
    return Image.open(io.BytesIO(client.get(f"/vqa/pictures/{digest}").content))


# Documents


def test_a_page_of_a_pdf_is_added(person):
    added = add(person, pdf(size=(20, 10)), name="plan.pdf", page=3)
    assert added["name"] == "plan.pdf, page 3"
    assert added["size"] == [56, 28]
    red, _, blue = stored(person, added["digest"]).getpixel((20, 10))
    assert blue > 240 > 12 > red


def test_an_svg_is_added(person):
    added = add(person, svg('<rect width="20" height="20" fill="red"/>'), name="icon.svg")
    assert added["size"] == [1024, 512]
    assert stored(person, added["digest"]).getpixel((100, 100)) == (255, 0, 0)


def test_the_pages_of_a_pdf_are_shown_to_choose_from(person):
    answer = person.post("/vqa/pdf-pages?name=plan.pdf&first=2", content=pdf(size=(20, 10)))
    found = answer.json()
    assert (found["pages"], found["first"], len(found["images"])) == (3, 2, 2)
    kind, _, data = found["images"][0].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (56, 28)


@pytest.mark.parametrize(
    ("path", "data", "words"),
    [
        ("/vqa/pictures?name=plan.pdf&page=9", pdf(size=(20, 10)), "has no page 9, only 3"),
        ("/vqa/pictures?name=plan.pdf", b"%PDF-1.4", "plan.pdf is damaged"),
        ("/vqa/pictures?name=icon.svg", svg()[:-3], "icon.svg is damaged"),
        ("/vqa/pdf-pages?name=cat.png", halves(), "cat.png is not a PDF document"),
    ],
)
def test_what_is_wrong_with_a_document_is_said(person, path, data, words):
    answer = person.post(path, content=data)
    assert answer.status_code == 400
    assert words in answer.json()["error"]


def test_documents_that_take_long_keep_nobody_else_waiting(server, person, other, monkeypatch):
    wait, begun = threading.Event(), threading.Semaphore(0)

    def draw(*_: Any, **__: Any) -> None:
        begun.release()
        wait.wait(PATIENCE)
        raise ImageError("enough")

    monkeypatch.setattr("ui.chat.service.open_document", draw)
    threads = [
        threading.Thread(target=person.post, args=("/vqa/pictures",), kwargs={"content": svg()})
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for _ in range(2):
        assert begun.acquire(timeout=PATIENCE)
    time.sleep(0.1)
    assert not begun.acquire(blocking=False), "expected two documents at once"
    assert add(other, halves())
    wait.set()
    for thread in threads:
        thread.join(PATIENCE)


# Regions and rotations


def test_a_region_becomes_a_picture_of_its_own(person):
    whole = add(person, halves())
    region = edit(person, whole["digest"], region=[20, 5, 40, 20]).json()
    assert region["size"] == [20, 15]
    assert region["region"] == {
        "of": whole["digest"],
        "name": "cat.png",
        "box": [20, 5, 40, 20],
        "whole": [40, 20],
    }
    assert stored(person, region["digest"]).getcolors() == [(300, (0, 0, 255))]
    assert stored(person, whole["digest"]).size == (40, 20)


@pytest.mark.parametrize(
    ("degrees", "size", "red_at"),
    [(90, [20, 40], (5, 5)), (180, [40, 20], (35, 5)), (270, [20, 40], (5, 35))],
)
def test_a_picture_is_rotated_clockwise(person, degrees, size, red_at):
    rotated = edit(person, add(person, halves())["digest"], rotate=degrees).json()
    assert rotated["size"] == size
    assert stored(person, rotated["digest"]).getpixel(red_at) == (255, 0, 0)
    text = {"key": "server.rotatedBy", "values": {"degrees": str(degrees)}}
    assert rotated["changes"] == [[text]]


def test_a_picture_that_was_rotated_all_around_is_the_first_one_again(person):
    first = add(person, halves())
    picture = first
    for _ in range(4):
        picture = edit(person, picture["digest"], rotate=90).json()
    assert picture == first


def test_a_rotated_region_is_still_told_as_one(person):
    region = edit(person, add(person, halves())["digest"], region=[0, 0, 10, 20]).json()
    rotated = edit(person, region["digest"], rotate=90).json()
    assert rotated["region"] == region["region"]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"region": [0, 0, 41, 20]}, "not within the picture"),
        ({"region": [-1, 0, 20, 20]}, "not within the picture"),
        ({"region": [20, 0, 10, 20]}, "not within the picture"),
        ({"region": [0, 0, 20]}, "not within the picture"),
        ({"region": [0, 0, 20.5, 20]}, "'region' of the request is wrong"),
        ({"region": [False, 0, 20, 20]}, "'region' of the request is wrong"),
        ({"region": "0,0,20,20"}, "'region' of the request is wrong"),
        ({"region": None}, "not within the picture"),
        ({"region": [0, 0, 3, 20]}, "too small"),
        ({"rotate": 45}, "rotated by 90, 180 or 270"),
        ({"rotate": [90]}, "'rotate' of the request is wrong"),
        ({}, "rotated by 90, 180 or 270"),
    ],
)
def test_an_impossible_edit_is_refused_with_a_reason(person, request_, words):
    answer = edit(person, add(person, halves())["digest"], **request_)
    assert answer.status_code == 400
    assert words in answer.json()["error"]


def test_a_picture_of_one_pixel_can_be_edited(person):
    stream = io.BytesIO()
    Image.new("RGB", (1, 3), "red").save(stream, "PNG")
    digest = add(person, stream.getvalue())["digest"]
    assert edit(person, digest, region=[0, 0, 1, 3]).json()["size"] == [1, 3]


def test_pictures_of_others_cannot_be_edited(person, other):
    digest = add(person, halves())["digest"]
    assert "has been deleted" in edit(other, digest, rotate=90).json()["error"]
    assert edit(other, "../../secret", rotate=90).status_code == 404


def test_a_malformed_edit_is_refused(person):
    digest = add(person, halves())["digest"]
    answer = person.post(f"/vqa/pictures/{digest}/edits", content=b"[]")
    assert "not a JSON object" in answer.json()["error"]


# By address


def test_a_picture_is_added_by_its_address(server, person, monkeypatch):
    def fetch(address, hosts, max_bytes):
        assert (hosts, max_bytes) == ({HOST}, 20 * 2**20)
        return halves(), address.rpartition("/")[2]

    monkeypatch.setattr("ui.chat.service.fetch_for_visitor", fetch)
    answer = person.post("/vqa/picture-address", content=f"https://{HOST}/a/cat.png")
    assert answer.json()["name"] == "cat.png"
    assert answer.json()["size"] == [40, 20]


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1/x.png", "https://elsewhere.example/x.png", "file:///etc/passwd"]
)
def test_nothing_is_fetched_from_other_hosts(person, address, monkeypatch):
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("looked up"))
    answer = person.post("/vqa/picture-address", content=address)
    assert answer.status_code == 400


def test_without_allowed_hosts_nothing_is_fetched(tmp_path):
    with (
        running({"fake": FakeEngine()}, tmp_path) as found,
        httpx.Client(base_url=found.address, timeout=PATIENCE) as client,
    ):
        client.get("/")
        answer = client.post("/vqa/picture-address", content=f"https://{HOST}/cat.png")
        assert "not allowed here" in answer.json()["error"]


def test_the_page_is_told_from_where_pictures_may_be_added(person):
    update = person.post("/vqa/requests/act", json={"do": "hello"}).text
    assert f'"picture_hosts": ["{HOST}"]' in update


@pytest.mark.parametrize(
    "path", ["/vqa/pictures", "/vqa/picture-address", "/vqa/pdf-pages", "/vqa/pictures/0/edits"]
)
def test_pictures_are_added_by_people_with_a_cookie_only(server, path):
    answer = httpx.post(server.address.rstrip("/") + path, content=b"{}", timeout=PATIENCE)
    assert answer.status_code == 400
    assert "cookies" in answer.json()["error"]
