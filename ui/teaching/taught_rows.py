"""Taught rows: right answers that people gave, as a LLaVA data set that `finetune` reads.

Each owner has a folder `<data dir>/taught/<name>` with `llava.json` and `images/<digest>.png`.
These files are the only copy; the database holds none of it.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import secrets
import tempfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from finetune.data.picture_marks import PLACEHOLDER, replace_marks
from ui.storage.picture_files import PictureStore
from ui.teaching.uploads import MAX_ROWS, describe_problem, read_upload, unpack
from vqa_app.errors import DataError, ImageError, UsageError, VqaError
from vqa_app.files import JSON_ERRORS, atomic_file, delete, json_problem
from vqa_app.pictures.picture import STORED_PICTURE_LIMITS, Picture
from vqa_app.prompts.conversation import SHORT_STYLE, replace_surrogates
from vqa_app.serving.redact import redact_paths

MAX_TEXT = 4000
"""Longest question or answer, in characters."""


@dataclass(frozen=True)
class TaughtRow:
    """A question about pictures and its right answer."""

    id: str
    question: str
    answer: str
    pictures: tuple[str, ...]
    """Digests of the pictures."""
    short: bool = False
    """Whether LLaVA's instruction for a short answer follows the question."""
    turn: str = ""
    """The turn of a chat that the row corrects; empty for an imported row."""
    model_answer: str = ""
    """What the model answered."""
    created: float = 0.0
    """Seconds since the epoch."""

    def to_llava(self) -> dict[str, Any]:
        """Return the row in LLaVA's format, with our own fields under `taught`."""
        images = [f"images/{digest}.png" for digest in self.pictures]
        question = replace_marks(self.question, "<picture>")
        asked = f"{PLACEHOLDER}\n" * len(images) + question + (SHORT_STYLE if self.short else "")
        row: dict[str, Any] = {"id": self.id}
        if images:
            row["image"] = images[0] if len(images) == 1 else images
        row["conversations"] = [
            {"from": "human", "value": asked},
            {"from": "gpt", "value": replace_marks(self.answer, "<picture>")},
        ]
        row["taught"] = {"turn": self.turn, "said": self.model_answer, "created": self.created}
        return row

    @classmethod
    def from_llava(cls, row: dict[str, Any]) -> TaughtRow:
        """Parse a row that `to_llava` wrote."""
        images = row.get("image", [])
        images = [images] if isinstance(images, str) else images
        asked, answer = (turn["value"] for turn in row["conversations"])
        asked = asked.replace(f"{PLACEHOLDER}\n", "")
        short = asked.endswith(SHORT_STYLE)
        taught = row.get("taught", {})
        return cls(
            row["id"],
            asked.removesuffix(SHORT_STYLE) if short else asked,
            answer,
            tuple(Path(image).stem for image in images),
            short,
            taught.get("turn", ""),
            taught.get("said", ""),
            taught.get("created", 0.0),
        )


class TaughtRowStore:
    """The taught rows of all owners. Thread-safe."""

    def __init__(self, folder: Path, picture_store: PictureStore) -> None:
        self.folder, self.picture_store = folder, picture_store
        self._lock = threading.RLock()
        self._in_use: Counter[str] = Counter()
        self._counts: dict[str, tuple[tuple[int, int], int]] = {}
        """By owner, the modification time and size of the file, and its number of rows."""
        self._imported: dict[str, frozenset[str]] = {}
        """By owner, the ids of the rows of the latest import since the server started."""

    def folder_of(self, owner: str) -> Path:
        """Return the folder of the owner's data set."""
        return self.folder / hashlib.sha256(owner.encode()).hexdigest()[:16]

    def data_file(self, owner: str) -> Path:
        """Return the file that `finetune --data` reads."""
        return self.folder_of(owner) / "llava.json"

    def rows(self, owner: str) -> list[TaughtRow]:
        """Return the owner's rows, most recent first."""
        return self._rows(owner)[::-1]

    def count(self, owner: str) -> int:
        """Return the number of rows; the file is read only if it has changed."""
        try:
            found = self.data_file(owner).stat()
        except FileNotFoundError:
            return 0
        stamp = (found.st_mtime_ns, found.st_size)
        with self._lock:
            if owner not in self._counts or self._counts[owner][0] != stamp:
                self._counts[owner] = (stamp, len(self._read(owner)))
            return self._counts[owner][1]

    def add(
        self,
        owner: str,
        question: str,
        answer: str,
        pictures: Sequence[Picture],
        *,
        short: bool = False,
        turn: str = "",
        model_answer: str = "",
    ) -> TaughtRow:
        """Add a row, replacing the one of the same turn.

        Raises:
            DataError: Question or answer is empty or too long.
        """
        digests = dict.fromkeys(picture.digest for picture in pictures)
        row = _make_row(
            question, answer, digests, short=short, turn=turn, model_answer=model_answer
        )
        with self._lock:
            for picture in pictures:
                self._add_picture(owner, picture)
            rows = self._rows(owner)
            kept = [old for old in rows if not turn or old.turn != turn]
            _check_row_limit(len(kept) + 1)
            self._write(owner, [*kept, row])
            if len(kept) < len(rows):
                self._delete_unused_pictures(owner, [*kept, row])
        return row

    def edit(self, owner: str, row_id: str, question: str, answer: str) -> TaughtRow:
        """Change the question and answer of a row, and return it.

        Raises:
            UsageError: There is no such row.
            DataError: Question or answer is empty or too long.
        """
        with self._lock:
            rows = self._rows(owner)
            place = self._index(rows, row_id)
            rows[place] = replace(
                rows[place],
                question=_validated("question", question, bool(rows[place].pictures)),
                answer=_validated("answer", answer),
            )
            self._write(owner, rows)
        return rows[place]

    def delete(self, owner: str, row_id: str) -> TaughtRow:
        """Delete a row, and return it.

        Raises:
            UsageError: There is no such row.
        """
        with self._lock:
            rows = self._rows(owner)
            row = rows.pop(self._index(rows, row_id))
            self._write(owner, rows)
            self._delete_unused_pictures(owner, rows)
        return row

    def delete_all(self, owner: str) -> list[TaughtRow]:
        """Delete all rows of an owner, and return them."""
        with self._lock:
            rows = self._rows(owner)
            self._write(owner, [])
            self._delete_unused_pictures(owner, [])
        return rows

    def count_imported(self, owner: str) -> int:
        """Return how many rows of the latest import still exist."""
        with self._lock:
            latest = self._imported.get(owner, frozenset())
            return len([row for row in self._rows(owner) if row.id in latest]) if latest else 0

    def undo_import(self, owner: str) -> None:
        """Delete the rows of the latest import."""
        with self._lock:
            latest = self._imported.pop(owner, frozenset())
            kept = [row for row in self._rows(owner) if row.id not in latest]
            self._write(owner, kept)
            self._delete_unused_pictures(owner, kept)

    def correction_for(self, owner: str, turn: str) -> str:
        """Return the taught answer of a turn, or an empty string."""
        return next((row.answer for row in self._rows(owner) if row.turn == turn), "")

    def delete_for_turn(self, owner: str, turn: str) -> None:
        """Delete the row of a turn, if there is one."""
        with self._lock:
            rows = self._rows(owner)
            kept = [row for row in rows if row.turn != turn]
            if len(kept) < len(rows):
                self._write(owner, kept)
                self._delete_unused_pictures(owner, kept)

    @contextmanager
    def keep_pictures(self, owner: str) -> Iterator[None]:
        """Keep pictures without rows: a training reads them, or their rows follow."""
        with self._lock:
            self._in_use[owner] += 1
        try:
            yield
        finally:
            with self._lock:
                self._in_use[owner] -= 1
                self._delete_unused_pictures(owner, self._rows(owner))

    def get_picture(self, owner: str, digest: str) -> Picture:
        """Return a row's picture; restore it in the picture store if its chat was deleted."""
        if self.picture_store.file(digest).exists():
            with contextlib.suppress(ImageError):  # deleted this very moment
                return self.picture_store.get(digest)
        return self.picture_store.add(
            self._image(owner, digest).read_bytes(), "picture", STORED_PICTURE_LIMITS
        )

    def export(self, owner: str) -> bytes:
        """Return a zip file of the data set: LLaVA JSON, the same as CSV, and the pictures."""
        rows = self._rows(owner)
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("llava.json", _json(rows))
            table = io.StringIO()
            writer = csv.writer(table)
            writer.writerow(["image", "question", "answer"])
            for row in rows:
                writer.writerow([_image_cell(row.pictures), row.question, row.answer])
            archive.writestr("rows.csv", table.getvalue())
            for digest in sorted({digest for row in rows for digest in row.pictures}):
                with contextlib.suppress(FileNotFoundError):  # it does not prevent the export
                    archive.write(self._image(owner, digest), f"images/{digest}.png")
        return stream.getvalue()

    def import_rows(self, owner: str, data: bytes, name: str = "") -> tuple[int, list[str]]:
        """Import the rows of a zip file with pictures and a data file in any format of `finetune`.

        Args:
            owner: Whose rows they become.
            data: Content of the file.
            name: Name of the file; a table or JSON file is also accepted without a zip file.

        Returns:
            The number of imported rows, and the problems of those that were skipped.

        Raises:
            DataError: The file cannot be read, or holds too many rows.
        """
        with tempfile.TemporaryDirectory(prefix="vqa-app-import-") as temporary:
            folder = Path(temporary) / "the uploaded file"  # the name that messages show
            folder.mkdir()
            unpack(data, folder, name)
            found = read_upload(folder)
            problems = [describe_problem(problem) for problem in found.problems]
            new: list[TaughtRow] = []
            digests: dict[str, str] = {}
            with self.keep_pictures(owner):
                for row in found.rows:
                    try:
                        new += self._rows_of(owner, row, digests)
                    except VqaError as error:
                        problems.append(redact_paths(f"row {row.number}: {error.problem}"))
                with self._lock:  # all at once, because each write replaces the whole file
                    kept = self._rows(owner)
                    _check_row_limit(len(kept) + len(new))
                    self._write(owner, [*kept, *new])
                    if new:
                        self._imported[owner] = frozenset(row.id for row in new)
        return len(new), problems

    def _rows_of(self, owner: str, row: Any, digests: dict[str, str]) -> list[TaughtRow]:
        """Split a dialogue into one row per question, with all pictures up to that question.

        Args:
            owner: Whose rows they become.
            row: a row as `finetune` reads it.
            digests: Digests of the pictures stored so far by `PictureSource.key`; updated.
        """
        new: list[TaughtRow] = []
        pictures: dict[str, None] = {}
        question = ""
        for turn in row.turns:
            if turn.role == "user":
                for source in turn.pictures:
                    if source.key not in digests:
                        picture = self.picture_store.add(source.open().image, source.name)
                        self._add_picture(owner, picture)
                        digests[source.key] = picture.digest
                    pictures[digests[source.key]] = None
                question = turn.text.strip()
            elif turn.role == "assistant" and turn.trained:
                short = question.endswith(SHORT_STYLE.strip())
                text = question.removesuffix(SHORT_STYLE.strip()).strip()
                new.append(_make_row(text, turn.text.strip(), pictures, short=short))
        return new

    def _add_picture(self, owner: str, picture: Picture) -> None:
        self.picture_store.link(picture, self._image(owner, picture.digest).parent)

    def _image(self, owner: str, digest: str) -> Path:
        return self.folder_of(owner) / "images" / f"{digest}.png"

    def _index(self, rows: Sequence[TaughtRow], row_id: str) -> int:
        for place, row in enumerate(rows):
            if row.id == row_id:
                return place
        raise UsageError("This row no longer exists.", "Reload the page.")

    def _rows(self, owner: str) -> list[TaughtRow]:
        """Return the rows in the order of the file, oldest first."""
        rows: list[TaughtRow] = []
        with self._lock:
            for number, row in enumerate(self._read(owner), 1):
                try:
                    rows.append(TaughtRow.from_llava(row))
                except (AttributeError, KeyError, TypeError, ValueError) as error:
                    reason = f"row {number} is not a question with an answer"
                    raise self._damaged(owner, reason) from error
        return rows

    def _read(self, owner: str) -> list[dict[str, Any]]:
        try:
            rows = json.loads(self.data_file(owner).read_text("utf-8"))
        except FileNotFoundError:
            return []
        except JSON_ERRORS as error:
            raise self._damaged(owner, json_problem(error)) from error
        if not isinstance(rows, list):
            raise self._damaged(owner, "it is not a list of rows")
        return rows

    def _damaged(self, owner: str, reason: str) -> DataError:
        file = self.data_file(owner)
        return DataError(
            f"The taught rows in {file.parent.name}/{file.name} cannot be read: {reason}.",
            "Correct the file, or move it away.",
        )

    def _write(self, owner: str, rows: Sequence[TaughtRow]) -> None:
        with atomic_file(self.data_file(owner)) as file:
            file.write_text(_json(rows), "utf-8")

    def _delete_unused_pictures(self, owner: str, rows: Sequence[TaughtRow]) -> None:
        """Delete the pictures that no row uses."""
        if self._in_use[owner]:
            return
        used = {digest for row in rows for digest in row.pictures}
        for image in (self.folder_of(owner) / "images").glob("*.png"):
            if image.stem not in used:
                delete(image)


def _make_row(
    question: str,
    answer: str,
    digests: Iterable[str],
    *,
    short: bool,
    turn: str = "",
    model_answer: str = "",
) -> TaughtRow:
    """Create a row; raise DataError if question or answer is empty or too long."""
    pictures = tuple(digests)
    question = _validated("question", question, bool(pictures))
    answer = _validated("answer", answer)
    return TaughtRow(
        secrets.token_hex(6), question, answer, pictures, short, turn, model_answer, time.time()
    )


def _check_row_limit(rows: int) -> None:
    if rows > MAX_ROWS:
        raise DataError(
            "There are too many rows.", f"The limit is {MAX_ROWS:,}; delete some first."
        )


def _image_cell(pictures: Sequence[str]) -> str:
    """Return the paths of the pictures as one table cell; several as a JSON list."""
    paths = [f"images/{digest}.png" for digest in pictures]
    return json.dumps(paths) if len(paths) > 1 else "".join(paths)


def _json(rows: Sequence[TaughtRow]) -> str:
    return json.dumps([row.to_llava() for row in rows], ensure_ascii=False, indent=1)


_EMPTY = {"question": "The question is empty.", "answer": "The answer is empty."}
_TOO_LONG = {"question": "The question is too long.", "answer": "The answer is too long."}


def _validated(what: Literal["question", "answer"], text: str, may_be_empty: bool = False) -> str:
    text = replace_surrogates(text).strip()
    if not text and not may_be_empty:
        raise DataError(_EMPTY[what], "Enter one.")
    if len(text) > MAX_TEXT:
        raise DataError(_TOO_LONG[what], f"The limit is {MAX_TEXT:,} characters.")
    return text
