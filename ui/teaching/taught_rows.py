"""Taught rows: what people said the right answer is, as a LLaVA data set that `finetune` reads.

Each owner has a folder `<data dir>/taught/<name>` with `llava.json` and `images/<digest>.png`. The
file is the truth; nothing of it stands in the database.
"""

from __future__ import annotations

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
from typing import Any

from ui.storage.picture_files import PictureStore
from ui.teaching.uploads import MAX_ROWS, read_sent, told, unpack
from vqa_app.errors import DataError, UsageError, VqaError
from vqa_app.files import atomic_file
from vqa_app.pictures.picture import STORED_PICTURE_LIMITS, Picture
from vqa_app.prompts.conversation import SHORT_STYLE
from vqa_app.prompts.conversation_file import replace_surrogates
from vqa_app.serving.redact import redact_paths

LONGEST_TEXT = 4000
_PLACEHOLDER = "<image>"


@dataclass(frozen=True)
class TaughtRow:
    """A question about pictures with its right answer."""

    id: str
    question: str
    answer: str
    pictures: tuple[str, ...]
    """Digests."""
    short: bool = False
    """Whether a short answer was asked for; LLaVA's instruction for that follows the question."""
    turn: str = ""
    """The turn of a chat that it corrects."""
    said: str = ""
    """What the model had said."""
    created: float = 0.0

    def to_llava(self) -> dict[str, Any]:
        images = [f"images/{digest}.png" for digest in self.pictures]
        question = self.question.replace(_PLACEHOLDER, "<picture>")
        asked = f"{_PLACEHOLDER}\n" * len(images) + question + (SHORT_STYLE if self.short else "")
        row: dict[str, Any] = {"id": self.id}
        if images:
            row["image"] = images[0] if len(images) == 1 else images
        row["conversations"] = [
            {"from": "human", "value": asked},
            {"from": "gpt", "value": self.answer},
        ]
        row["taught"] = {"turn": self.turn, "said": self.said, "created": self.created}
        return row

    @classmethod
    def from_llava(cls, row: dict[str, Any]) -> TaughtRow:
        images = row.get("image", [])
        images = [images] if isinstance(images, str) else images
        asked, answer = (turn["value"] for turn in row["conversations"])
        asked = asked.replace(f"{_PLACEHOLDER}\n", "")
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


class Teaching:
    """All owners' taught rows. Safe to use from any thread."""

    def __init__(self, folder: Path, picture_store: PictureStore) -> None:
        self.folder, self.picture_store = folder, picture_store
        self._lock = threading.RLock()
        self._in_use: Counter[str] = Counter()
        self._counts: dict[str, tuple[tuple[int, int], int]] = {}
        """By owner, the file's time and size and how many rows it had then."""
        self._imported: dict[str, frozenset[str]] = {}
        """By owner, the rows that came with the latest import, since the server started."""

    def home(self, owner: str) -> Path:
        """The owner's data set: `finetune --data` takes its `llava.json`."""
        return self.folder / hashlib.sha256(owner.encode()).hexdigest()[:16]

    def file(self, owner: str) -> Path:
        return self.home(owner) / "llava.json"

    def rows(self, owner: str) -> list[TaughtRow]:
        """Latest first."""
        return self._rows(owner)[::-1]

    def count(self, owner: str) -> int:
        """How many rows there are; the file is read again only when it changed."""
        try:
            found = self.file(owner).stat()
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
        said: str = "",
    ) -> TaughtRow:
        """Keeps a row; one of the same turn is replaced.

        Raises:
            DataError: question or answer is empty or too long.
        """
        digests = dict.fromkeys(picture.digest for picture in pictures)
        row = _new_row(question, answer, digests, short=short, turn=turn, said=said)
        with self._lock:
            for picture in pictures:
                self._keep(owner, picture)
            rows = self._rows(owner)
            kept = [old for old in rows if not turn or old.turn != turn]
            _check_room(len(kept) + 1)
            self._write(owner, [*kept, row])
            if len(kept) < len(rows):
                self._sweep(owner, [*kept, row])
        return row

    def edit(self, owner: str, row_id: str, question: str, answer: str) -> None:
        with self._lock:
            rows = self._rows(owner)
            place = self._place(rows, row_id)
            rows[place] = replace(
                rows[place],
                question=_checked("question", question, bool(rows[place].pictures)),
                answer=_checked("answer", answer),
            )
            self._write(owner, rows)

    def delete(self, owner: str, row_id: str) -> None:
        with self._lock:
            rows = self._rows(owner)
            del rows[self._place(rows, row_id)]
            self._write(owner, rows)
            self._sweep(owner, rows)

    def delete_all(self, owner: str) -> None:
        with self._lock:
            self._write(owner, [])
            self._sweep(owner, [])

    def imported(self, owner: str) -> int:
        """How many rows of the latest import are still there."""
        with self._lock:
            latest = self._imported.get(owner, frozenset())
            return len([row for row in self._rows(owner) if row.id in latest]) if latest else 0

    def undo_import(self, owner: str) -> None:
        """Removes what the latest import brought."""
        with self._lock:
            latest = self._imported.pop(owner, frozenset())
            kept = [row for row in self._rows(owner) if row.id not in latest]
            self._write(owner, kept)
            self._sweep(owner, kept)

    def corrected(self, owner: str, turn: str) -> str:
        """The right answer that was taught for a turn, empty where there is none."""
        return next((row.answer for row in self._rows(owner) if row.turn == turn), "")

    def forget(self, owner: str, turn: str) -> None:
        """Removes the row of a turn, if there is one."""
        with self._lock:
            rows = self._rows(owner)
            kept = [row for row in rows if row.turn != turn]
            if len(kept) < len(rows):
                self._write(owner, kept)
                self._sweep(owner, kept)

    @contextmanager
    def in_use(self, owner: str) -> Iterator[None]:
        """Keeps pictures that no row shows: a training reads them, or their rows are to come."""
        with self._lock:
            self._in_use[owner] += 1
        try:
            yield
        finally:
            with self._lock:
                self._in_use[owner] -= 1
                self._sweep(owner, self._rows(owner))

    def picture(self, owner: str, digest: str) -> Picture:
        """A row's picture, put back on the shelf where its chat was deleted meanwhile."""
        if self.picture_store.file(digest).exists():
            return self.picture_store.get(digest)
        return self.picture_store.add(
            self._image(owner, digest).read_bytes(), "picture", STORED_PICTURE_LIMITS
        )

    def export(self, owner: str) -> bytes:
        """A zip file of the data set: LLaVA JSON, the same as CSV, and the pictures."""
        rows = self._rows(owner)
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("llava.json", _json(rows))
            table = io.StringIO()
            writer = csv.writer(table)
            writer.writerow(["image", "question", "answer"])
            for row in rows:
                writer.writerow([_cell(row.pictures), row.question, row.answer])
            archive.writestr("rows.csv", table.getvalue())
            for digest in sorted({digest for row in rows for digest in row.pictures}):
                if self._image(owner, digest).exists():  # no lost one holds back the others
                    archive.write(self._image(owner, digest), f"images/{digest}.png")
        return stream.getvalue()

    def take_in(self, owner: str, data: bytes, name: str = "") -> tuple[int, list[str]]:
        """Adds the rows of a zip file: a data file in any format `finetune` reads, and pictures.

        Args:
            name: of the file; a table or JSON file may come without a zip file around it.

        Returns:
            How many rows came in, and what was wrong with others.

        Raises:
            DataError: it is no such zip file, or holds more rows than fit.
        """
        with tempfile.TemporaryDirectory(prefix="vqa-app-import-") as temporary:
            folder = Path(temporary) / "what was sent"  # what messages call it
            folder.mkdir()
            unpack(data, folder, name)
            found = read_sent(folder)
            problems = [told(problem) for problem in found.problems]
            new: list[TaughtRow] = []
            digests: dict[str, str] = {}
            with self.in_use(owner):
                for row in found.rows:
                    try:
                        new += self._rows_of(owner, row, digests)
                    except VqaError as error:
                        problems.append(redact_paths(f"row {row.number}: {error.problem}"))
                with self._lock:  # once for all: every writing writes the whole file
                    kept = self._rows(owner)
                    _check_room(len(kept) + len(new))
                    self._write(owner, [*kept, *new])
                    if new:
                        self._imported[owner] = frozenset(row.id for row in new)
        return len(new), problems

    def _rows_of(self, owner: str, row: Any, digests: dict[str, str]) -> list[TaughtRow]:
        """Every question of a row as a row of its own, with the pictures up to it.

        Args:
            digests: of the pictures that are kept already, by `PictureSource.key`; grows.
        """
        new: list[TaughtRow] = []
        seen: dict[str, None] = {}
        question = ""
        for turn in row.turns:
            if turn.role == "user":
                for source in turn.pictures:
                    if source.key not in digests:
                        picture = self.picture_store.add(source.open().image, source.name)
                        self._keep(owner, picture)
                        digests[source.key] = picture.digest
                    seen[digests[source.key]] = None
                question = turn.text.strip()
            elif turn.role == "assistant":
                short = question.endswith(SHORT_STYLE.strip())
                text = question.removesuffix(SHORT_STYLE.strip()).strip()
                new.append(_new_row(text, turn.text.strip(), seen, short=short))
        return new

    def _keep(self, owner: str, picture: Picture) -> None:
        image = self._image(owner, picture.digest)
        if not image.exists() and not self.picture_store.file(picture.digest).exists():
            self.picture_store.add(picture.image, picture.name)
        self.picture_store.link(picture.digest, image.parent)

    def _image(self, owner: str, digest: str) -> Path:
        return self.home(owner) / "images" / f"{digest}.png"

    def _place(self, rows: Sequence[TaughtRow], row_id: str) -> int:
        for place, row in enumerate(rows):
            if row.id == row_id:
                return place
        raise UsageError("This row does not exist any more.", "Reload the page.")

    def _rows(self, owner: str) -> list[TaughtRow]:
        """Oldest first, as the file has them."""
        with self._lock:
            return [TaughtRow.from_llava(row) for row in self._read(owner)]

    def _read(self, owner: str) -> list[dict[str, Any]]:
        try:
            return json.loads(self.file(owner).read_text("utf-8"))
        except FileNotFoundError:
            return []

    def _write(self, owner: str, rows: Sequence[TaughtRow]) -> None:
        with atomic_file(self.file(owner)) as file:
            file.write_text(_json(rows), "utf-8")

    def _sweep(self, owner: str, rows: Sequence[TaughtRow]) -> None:
        """Removes the pictures of deleted rows."""
        if self._in_use[owner]:
            return
        shown = {digest for row in rows for digest in row.pictures}
        for image in (self.home(owner) / "images").glob("*.png"):
            if image.stem not in shown:
                image.unlink(missing_ok=True)


def _new_row(
    question: str,
    answer: str,
    digests: Iterable[str],
    *,
    short: bool,
    turn: str = "",
    said: str = "",
) -> TaughtRow:
    """Raises DataError where question or answer is empty or too long."""
    pictures = tuple(digests)
    question = _checked("question", question, bool(pictures))
    answer = _checked("answer", answer)
    return TaughtRow(
        secrets.token_hex(6), question, answer, pictures, short, turn, said, time.time()
    )


def _check_room(rows: int) -> None:
    if rows > MAX_ROWS:
        raise DataError("There are too many rows.", f"At most {MAX_ROWS:,} fit; delete some first.")


def _cell(pictures: Sequence[str]) -> str:
    """The pictures of a row in one cell of a table; several as a JSON list, which `finetune`
    reads.
    """
    paths = [f"images/{digest}.png" for digest in pictures]
    return json.dumps(paths) if len(paths) > 1 else "".join(paths)


def _json(rows: Sequence[TaughtRow]) -> str:
    return json.dumps([row.to_llava() for row in rows], ensure_ascii=False, indent=1)


def _checked(what: str, text: str, may_be_empty: bool = False) -> str:
    text = replace_surrogates(text).strip()
    if not text and not may_be_empty:
        raise DataError(f"The {what} is empty.", "Write one.")
    if len(text) > LONGEST_TEXT:
        raise DataError(f"The {what} is too long.", f"At most {LONGEST_TEXT:,} characters.")
    return text
