"""What names a picture."""

from __future__ import annotations

from vqa_app.pictures.names import is_url


def test_addresses_are_told_from_paths_and_questions() -> None:
    assert is_url("https://example.com/a.png")
    assert is_url("ftp://host/x")
    assert not is_url("photos/a.png")
    assert not is_url("C:\\photos\\a.png")
    assert not is_url("What is on the mat?")
