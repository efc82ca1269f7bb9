"""easy-VQA folders: `questions.json` with `[question, answer, image id]` beside `images/<id>.png`.

The layout of Victor Zhou's easy-VQA (2019), which teaching material on VQA likes to use.
"""

from __future__ import annotations

import json
from pathlib import Path

from ui.render import SHORT_STYLE


def find(folder: Path) -> Path | None:
    """The training questions of such a folder, None where it is no such folder."""
    files = sorted(folder.rglob("questions.json"), key=lambda file: "train" not in file.parts)
    for file in files:
        if (file.parent / "images").is_dir() and _triples(file):
            return file
    return None


def convert(questions: Path) -> Path:
    """Writes the questions beside themselves as LLaVA JSON, short answers; gives the file."""
    rows = []
    for number, (question, answer, image) in enumerate(_triples(questions)):
        asked = f"<image>\n{question}{SHORT_STYLE}"
        said = [{"from": "human", "value": asked}, {"from": "gpt", "value": str(answer)}]
        rows.append({"id": str(number), "image": f"images/{image}.png", "conversations": said})
    out = questions.with_name("questions-llava.json")
    out.write_text(json.dumps(rows), "utf-8")
    return out


def _triples(file: Path) -> list[tuple[str, str, int]]:
    try:
        rows = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return []
    if not isinstance(rows, list):
        return []
    return [
        (row[0], row[1], row[2])
        for row in rows
        if isinstance(row, list) and len(row) == 3 and isinstance(row[2], int)
    ]
