"""VQA v2's official files (Goyal et al. 2017): questions and annotations joined by question id."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.data.picture_columns import Context, find_picture
from finetune.data.records import read_record
from finetune.data.rows import BadRow, Problem, Row
from vqa_app.prompts.conversation import SHORT_STYLE


def load_official(path: Path) -> dict[str, Any] | None:
    """Return the file's content if it is a VQA v2 question or annotation file, else None."""
    try:
        with path.open("rb") as file:
            if b'"questions"' not in (start := file.read(4096)) and b'"annotations"' not in start:
                # Keys come in any order: small ones (info, license) may follow the long list.
                file.seek(max(0, path.stat().st_size - 4096))
                tail = file.read()
                if b'"data_subtype"' not in tail or not start.lstrip().startswith(b"{"):
                    return None
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):  # reported when it is read as an ordinary file
        return None
    if not isinstance(data, dict):
        return None
    for key in ("questions", "annotations"):
        entries = data.get(key)
        if isinstance(entries, list) and entries and isinstance(entries[0], dict):
            return data if "question_id" in entries[0] else None
    return None


def join(
    questions: dict[str, Any],
    annotations: dict[str, Any],
    context: Context,
    problems: list[Problem],
) -> Iterator[Row]:
    """Yield rows in the order of the questions, numbered from 1; append to `problems`."""
    answers = {entry.get("question_id"): entry for entry in annotations["annotations"]}
    subset = questions.get("data_subtype") or annotations.get("data_subtype") or ""
    for number, entry in enumerate(questions["questions"], 1):
        try:
            annotation = answers.get(entry.get("question_id"))
            if annotation is None:
                raise BadRow(
                    f"Question {entry.get('question_id')} has no annotation.",
                    "Check that the two files belong together.",
                )
            if not str(entry.get("question") or "").strip():
                raise BadRow(f"Question {entry.get('question_id')} has no text.")
            record = {
                **annotation,
                "question": f"{entry['question']}{SHORT_STYLE}",
                "image": str(_find_coco_picture(entry.get("image_id"), subset, context)),
            }
            yield read_record(record, number, context)
        except BadRow as bad:
            problems.append(Problem(context.file, number, bad.message, bad.hint))


def _find_coco_picture(image_id: Any, subset: str, context: Context) -> Path:
    """Find COCO_val2014_000000262148.jpg, 000000262148.jpg, or a file named by the plain id."""
    try:
        digits = f"{int(image_id):012d}"
    except (TypeError, ValueError):
        return find_picture(str(image_id), context.roots)
    name = f"COCO_{subset}_{digits}"
    for stem in (name, f"{subset}/{name}", str(image_id)):
        try:
            return find_picture(stem, context.roots)
        except BadRow:
            continue
    folders = " or ".join(map(str, context.roots))
    raise BadRow(
        f"There is no picture {name}.jpg or {digits}.jpg in {folders}.",
        "Pass the folder of the COCO pictures with --images.",
    )
