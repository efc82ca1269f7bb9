"""What messages of a server do not reveal."""

from __future__ import annotations

from pathlib import Path

import pytest

from vqa_app.serving.redact import hide_folder, redact_paths


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("The folder /tmp/data/cats holds no data.", "The folder cats holds no data."),
        (
            "Reading /srv/a b.json, row 3: ~/x/y/z.png is bad.",
            "Reading a b.json, row 3: z.png is bad.",
        ),
        ("owner/name is on https://example.org/a/b", "owner/name is on https://example.org/a/b"),
        ("1/2 of it, and/or more", "1/2 of it, and/or more"),
        (r"No C:\Users\ann\runs\x here.", "No x here."),
        ("No /home/ann/my data/runs/x here.", "No x here."),
        ("No ~/x.png here: / is empty.", "No x.png here: / is empty."),
    ],
)
def test_paths_are_reduced_to_file_names(text, shown):
    hide_folder(Path("/home/ann/my data"))
    assert redact_paths(text) == shown
