"""The database of conversations: one SQLite file, in which each owner sees only their own.

A conversation is a tree of turns (a question and its answer). Asking again or editing an earlier
question adds a sibling, so nothing is lost; the page shows the path from the root to the turn
`head`. Pictures are referenced by digest; `ui.storage.picture_files` stores the files.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from vqa_app.errors import UsageError

State: TypeAlias = Literal["answering", "answered", "stopped", "failed"]
Verdict: TypeAlias = Literal["right", "wrong"]
PossessionKind: TypeAlias = Literal["run", "data"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS conversations (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, title TEXT NOT NULL, head TEXT,
    created REAL NOT NULL, updated REAL NOT NULL);
CREATE INDEX IF NOT EXISTS conversations_of ON conversations (owner, updated DESC);
CREATE TABLE IF NOT EXISTS turns (
    id TEXT PRIMARY KEY, number INTEGER NOT NULL,
    conversation TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    parent TEXT, question TEXT NOT NULL, pictures TEXT NOT NULL, answer TEXT NOT NULL,
    state TEXT NOT NULL, facts TEXT NOT NULL, verdict TEXT, created REAL NOT NULL);
CREATE INDEX IF NOT EXISTS turns_of ON turns (conversation, number);
CREATE TABLE IF NOT EXISTS pictures (
    owner TEXT NOT NULL, digest TEXT NOT NULL, name TEXT NOT NULL, facts TEXT NOT NULL,
    created REAL NOT NULL, PRIMARY KEY (owner, digest));
CREATE TABLE IF NOT EXISTS possessions (
    kind TEXT NOT NULL, name TEXT NOT NULL, owner TEXT NOT NULL, label TEXT NOT NULL,
    shared INTEGER NOT NULL, PRIMARY KEY (kind, name));
CREATE TABLE IF NOT EXISTS settings (owner TEXT PRIMARY KEY, data TEXT NOT NULL);
"""
_ADDED_COLUMNS = {
    "pinned": "INTEGER NOT NULL DEFAULT 0",
    "archived": "INTEGER NOT NULL DEFAULT 0",
    "deleted": "REAL",  # when; the conversation is removed a little later
    "system": "TEXT",  # the system prompt, if it has one of its own
}
"""Columns of `conversations` that files of version 0.2.0 and before lack."""


@dataclass(frozen=True)
class StoredTurn:
    """A question with its pictures, and the answer so far."""

    id: str
    parent: str | None
    question: str
    pictures: tuple[str, ...]
    """Digests of the pictures."""
    answer: str
    state: State
    facts: dict[str, Any]
    """Metadata of the answer as JSON values: model, confidence, token counts and so on."""
    verdict: Verdict | None = None


@dataclass(frozen=True)
class ConversationSummary:
    """The entry of a conversation in the sidebar."""

    id: str
    title: str
    updated: float
    pinned: bool = False
    archived: bool = False
    picture: str | None = None
    """Digest of the first picture."""
    answer: str = ""
    """Beginning of the first answer, which tells apart conversations with the same question."""


@dataclass(frozen=True)
class Possession:
    """A training run or an uploaded data set, and who may use it."""

    name: str
    """Its folder, relative to that of its kind."""
    owner: str
    label: str
    """What its owner calls it."""
    shared: bool
    """Whether everybody on this server may use it."""


class Store:
    """Conversations, picture names and settings of all owners. Thread-safe.

    Args:
        path: The SQLite file; its folder must exist.
        remove_file: Called with the digest of each picture that no owner has any more. Until it
            returns, no owner can add a picture.
    """

    def __init__(
        self, path: Path, remove_file: Callable[[str], None] = lambda digest: None
    ) -> None:
        self._remove_file = remove_file
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        # SQLite's own lower() handles ASCII only.
        self._db.create_function("casefold", 1, str.casefold, deterministic=True)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA foreign_keys = ON")
        self._db.executescript(_SCHEMA)
        self._add_columns()
        # Answers that a stopped server left unfinished keep the text they have.
        self._db.execute("UPDATE turns SET state = 'stopped' WHERE state = 'answering'")

    def _add_columns(self) -> None:
        """Add the columns that a file of an earlier version lacks."""
        with self._transaction() as db:
            present = {row["name"] for row in db.execute("PRAGMA table_info(conversations)")}
            for name, kind in _ADDED_COLUMNS.items():
                if name not in present:
                    db.execute(f"ALTER TABLE conversations ADD COLUMN {name} {kind}")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # if the disk is full, SQLite has already rolled back
                    self._db.execute("ROLLBACK")
                raise

    def _fetch(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    # -- conversations -----------------------------------------------------------------------------

    def conversations(self, owner: str) -> list[ConversationSummary]:
        """Return the owner's conversations: pinned ones first, then the most recent."""
        rows = self._fetch(
            "SELECT id, title, updated, pinned, archived,"
            " (SELECT json_extract(pictures, '$[0]') FROM turns"
            " WHERE conversation = conversations.id AND pictures != '[]'"
            " ORDER BY number LIMIT 1) AS picture,"
            " (SELECT substr(answer, 1, 300) FROM turns"
            " WHERE conversation = conversations.id AND answer != ''"
            " ORDER BY number LIMIT 1) AS answer"
            " FROM conversations WHERE owner = ? AND deleted IS NULL"
            " ORDER BY pinned DESC, updated DESC",
            owner,
        )
        return [
            ConversationSummary(
                row["id"], row["title"], row["updated"], bool(row["pinned"]), bool(row["archived"]),
                row["picture"], row["answer"] or "",
            )
            for row in rows
        ]  # fmt: skip

    def search(self, owner: str, words: str) -> list[str]:
        """Return the ids of conversations with the words in a title, question or answer.

        Upper and lower case are not distinguished.
        """
        rows = self._fetch(
            "SELECT id FROM conversations WHERE owner = ?1 AND deleted IS NULL"
            " AND (instr(casefold(title), ?2)"
            " OR EXISTS (SELECT 1 FROM turns WHERE conversation = conversations.id"
            " AND (instr(casefold(question), ?2) OR instr(casefold(answer), ?2))))",
            owner,
            words.casefold(),
        )
        return [row["id"] for row in rows]

    def create(self, owner: str, title: str = "") -> str:
        """Create an empty conversation and return its id."""
        conversation, now = secrets.token_urlsafe(9), time.time()
        with self._transaction() as db:
            db.execute(
                "INSERT INTO conversations (id, owner, title, created, updated)"
                " VALUES (?, ?, ?, ?, ?)",
                (conversation, owner, title, now, now),
            )
        return conversation

    def title(self, owner: str, conversation: str) -> str:
        """Return the title of a conversation.

        Raises:
            UsageError: The owner has no such conversation.
        """
        return self._conversation_row(owner, conversation)["title"]

    def rename(self, owner: str, conversation: str, title: str) -> None:
        """Set the title of a conversation."""
        self._conversation_row(owner, conversation)
        with self._transaction() as db:
            db.execute("UPDATE conversations SET title = ? WHERE id = ?", (title, conversation))

    def system_prompt(self, owner: str, conversation: str) -> str | None:
        """Return the system prompt of a conversation; None if it has none of its own."""
        return self._conversation_row(owner, conversation)["system"]

    def set_system_prompt(self, owner: str, conversation: str, system: str | None) -> None:
        """Give a conversation a system prompt of its own; None takes it away."""
        self._conversation_row(owner, conversation)
        with self._transaction() as db:
            db.execute("UPDATE conversations SET system = ? WHERE id = ?", (system, conversation))

    def pin(self, owner: str, conversation: str, pinned: bool) -> None:
        """Keep a conversation at the top of the list, or no longer."""
        self._conversation_row(owner, conversation)
        with self._transaction() as db:
            db.execute("UPDATE conversations SET pinned = ? WHERE id = ?", (pinned, conversation))

    def archive(self, owner: str, conversations: Sequence[str], archived: bool) -> None:
        """Archive conversations, or take them back; a question in one takes it back as well."""
        self._mark(owner, conversations, "archived", archived)

    def mark_deleted(self, owner: str, conversations: Sequence[str]) -> None:
        """Hide conversations until `remove_deleted` removes them or `restore` brings them back."""
        self._mark(owner, conversations, "deleted", time.time())

    def _mark(self, owner: str, conversations: Sequence[str], column: str, value: float) -> None:
        with self._transaction() as db:  # all or none
            for conversation in conversations:
                self._conversation_row(owner, conversation)
                sql = f"UPDATE conversations SET {column} = ? WHERE id = ?"
                db.execute(sql, (value, conversation))

    def restore(self, owner: str, conversations: Sequence[str]) -> None:
        """Bring back deleted conversations that have not been removed yet.

        Raises:
            UsageError: One of them has been removed; the others stay deleted.
        """
        with self._transaction() as db:
            for conversation in conversations:
                found = db.execute(
                    "UPDATE conversations SET deleted = NULL"
                    " WHERE id = ? AND owner = ? AND deleted IS NOT NULL",
                    (conversation, owner),
                )
                if not found.rowcount:
                    raise UsageError("It is too late to undo this.", "The chat is gone.")

    def remove_deleted(self, before: float) -> list[str]:
        """Remove conversations that were deleted before a time, and return their owners.

        Args:
            before: Seconds since the epoch.
        """
        with self._lock:  # so that none is restored meanwhile
            rows = self._fetch("SELECT id, owner FROM conversations WHERE deleted <= ?", before)
            for row in rows:
                self._remove(row["owner"], row["id"])
        return sorted({row["owner"] for row in rows})

    def delete(self, owner: str, conversation: str) -> None:
        """Remove a conversation with its pictures at once."""
        self._conversation_row(owner, conversation)
        self._remove(owner, conversation)

    def _remove(self, owner: str, conversation: str) -> None:
        rows = self._fetch("SELECT * FROM turns WHERE conversation = ?", conversation)
        with self._transaction() as db:
            db.execute("DELETE FROM conversations WHERE id = ?", (conversation,))
        self._forget_pictures(owner, rows)

    def _forget_pictures(self, owner: str, turns: Iterable[sqlite3.Row]) -> None:
        """Remove the owner's pictures of deleted turns.

        Those that they have added again since wait in another tab for their question.
        """
        used: dict[str, float] = {}
        for turn in turns:
            for digest in json.loads(turn["pictures"]):
                used[digest] = max(turn["created"], used.get(digest, 0.0))
        for digest, when in used.items():
            self._forget_picture(owner, digest, when)

    def _forget_picture(self, owner: str, digest: str, before: float) -> None:
        """Remove an owner's picture if they added it before a time and no turn uses it."""
        with self._transaction() as db:
            if _is_used(db, owner, digest):
                return
            db.execute(
                "DELETE FROM pictures WHERE owner = ? AND digest = ? AND created <= ?",
                (owner, digest, before),
            )
            left = db.execute("SELECT 1 FROM pictures WHERE digest = ? LIMIT 1", (digest,))
            if left.fetchone() is None:
                self._remove_file(digest)

    def owns(self, owner: str, conversation: str) -> bool:
        """Return whether a conversation exists and belongs to the owner."""
        return bool(
            self._fetch(
                "SELECT 1 FROM conversations WHERE id = ? AND owner = ? AND deleted IS NULL",
                conversation,
                owner,
            )
        )

    def _conversation_row(self, owner: str, conversation: str) -> sqlite3.Row:
        rows = self._fetch(
            "SELECT * FROM conversations WHERE id = ? AND owner = ? AND deleted IS NULL",
            conversation,
            owner,
        )
        if not rows:
            # The same message for a missing conversation and for another owner's.
            raise UsageError("This conversation does not exist.", "Pick one on the left.")
        return rows[0]

    # -- turns -------------------------------------------------------------------------------------

    def path(self, owner: str, conversation: str) -> list[StoredTurn]:
        """Return the turns that the page shows, from the root to the head."""
        head = self._conversation_row(owner, conversation)["head"]
        return self._path_to(conversation, head)

    def path_to(self, owner: str, conversation: str, turn: str | None) -> list[StoredTurn]:
        """Return the turns from the root to `turn`, inclusive; an empty list for None."""
        self._conversation_row(owner, conversation)
        if turn is not None:
            self._turn(conversation, turn)
        return self._path_to(conversation, turn)

    def _path_to(self, conversation: str, turn: str | None) -> list[StoredTurn]:
        turns = {found.id: found for found in self._turns(conversation)}
        path: list[StoredTurn] = []
        while turn is not None and turn in turns and len(path) <= len(turns):
            path.append(turns[turn])
            turn = turns[turn].parent
        return path[::-1]

    def _turns(self, conversation: str) -> list[StoredTurn]:
        rows = self._fetch(
            "SELECT * FROM turns WHERE conversation = ? ORDER BY number", conversation
        )
        return [_parse_turn(row) for row in rows]

    def turn(self, owner: str, conversation: str, turn: str) -> StoredTurn:
        """Return one turn.

        Raises:
            UsageError: The owner has no such turn.
        """
        self._conversation_row(owner, conversation)
        return self._turn(conversation, turn)

    def _turn(self, conversation: str, turn: str) -> StoredTurn:
        rows = self._fetch(
            "SELECT * FROM turns WHERE conversation = ? AND id = ?", conversation, turn
        )
        if not rows:
            raise UsageError("This question no longer exists.", "Reload the page.")
        return _parse_turn(rows[0])

    def turns(self, owner: str, conversation: str) -> list[StoredTurn]:
        """Return the turns of all branches in the order of creation, so parents come first."""
        self._conversation_row(owner, conversation)
        return self._turns(conversation)

    def turns_about(self, owner: str, picture: str) -> list[StoredTurn]:
        """Return the turns of the owner's conversations in which a picture is shown.

        Within each conversation they are in the order of creation, so parents come first.
        """
        rows = self._fetch(
            "SELECT turns.* FROM turns JOIN conversations"
            " ON conversations.id = turns.conversation"
            " WHERE owner = ?1 AND deleted IS NULL AND conversation IN"
            " (SELECT conversation FROM turns WHERE instr(pictures, ?2))"
            " ORDER BY conversations.updated DESC, conversation, number",
            owner,
            picture,
        )
        return [_parse_turn(row) for row in rows]

    def siblings(self, owner: str, conversation: str) -> dict[str, list[str]]:
        """Return for each turn all children of its parent, itself included, oldest first."""
        self._conversation_row(owner, conversation)
        groups: dict[str | None, list[str]] = {}
        turns = self._turns(conversation)
        for turn in turns:
            groups.setdefault(turn.parent, []).append(turn.id)
        return {turn.id: groups[turn.parent] for turn in turns}

    def add_turn(
        self,
        owner: str,
        conversation: str,
        parent: str | None,
        question: str,
        pictures: Sequence[str] = (),
        facts: dict[str, Any] | None = None,
    ) -> StoredTurn:
        """Add a question below `parent` (None: at the root) and make it the head."""
        turn, now = secrets.token_urlsafe(9), time.time()
        with self._transaction() as db:  # the conversation may be deleted in another tab
            self._conversation_row(owner, conversation)
            if parent is not None:
                self._turn(conversation, parent)
            number = db.execute(
                "SELECT COALESCE(MAX(number), 0) + 1 FROM turns WHERE conversation = ?",
                (conversation,),
            ).fetchone()[0]
            db.execute(
                "INSERT INTO turns VALUES (?, ?, ?, ?, ?, ?, '', 'answering', ?, NULL, ?)",
                (
                    turn, number, conversation, parent, question,
                    _json(list(pictures)), _json(facts or {}), now,
                ),
            )  # fmt: skip
            db.execute(
                "UPDATE conversations SET head = ?, updated = ?, archived = 0 WHERE id = ?",
                (turn, now, conversation),
            )
        return self._turn(conversation, turn)

    def finish_turn(
        self, turn: str, answer: str, state: State, facts: dict[str, Any] | None = None
    ) -> None:
        """Store the answer of a turn and add `facts` to its metadata.

        Nothing happens if the turn was deleted meanwhile.
        """
        with self._transaction() as db:
            db.execute("UPDATE turns SET answer = ?, state = ? WHERE id = ?", (answer, state, turn))
            _add_facts(db, turn, facts or {})

    def add_facts(self, owner: str, conversation: str, turn: str, facts: dict[str, Any]) -> None:
        """Add metadata to an answer without changing its text."""
        self._conversation_row(owner, conversation)
        self._turn(conversation, turn)
        with self._transaction() as db:
            _add_facts(db, turn, facts)

    def set_correction(self, owner: str, turn: str, correction: str) -> None:
        """Store what the right answer would be, or "" for none, unless the turn was deleted."""
        with self._transaction() as db:
            found = db.execute(
                "SELECT 1 FROM turns JOIN conversations ON conversations.id = turns.conversation"
                " WHERE turns.id = ? AND owner = ?",
                (turn, owner),
            )
            if found.fetchone() is not None:
                _add_facts(db, turn, {"correction": correction})

    def set_verdict(
        self, owner: str, conversation: str, turn: str, verdict: Verdict | None
    ) -> None:
        """Store whether the owner marked an answer as right or wrong."""
        self.turn(owner, conversation, turn)
        with self._transaction() as db:
            db.execute("UPDATE turns SET verdict = ? WHERE id = ?", (verdict, turn))

    def show_branch(self, owner: str, conversation: str, turn: str) -> None:
        """Make the latest turn of the branch through `turn` the head."""
        self.turn(owner, conversation, turn)
        latest = {found.parent: found.id for found in self._turns(conversation)}
        while turn in latest:
            turn = latest[turn]
        with self._transaction() as db:
            db.execute("UPDATE conversations SET head = ? WHERE id = ?", (turn, conversation))

    def delete_turn(self, owner: str, conversation: str, turn: str) -> None:
        """Delete a turn with its pictures, and attach its children to its parent."""
        deleted = self.turn(owner, conversation, turn)
        rows = self._fetch("SELECT * FROM turns WHERE id = ?", turn)
        head = self._conversation_row(owner, conversation)["head"]
        with self._transaction() as db:
            db.execute(
                "UPDATE turns SET parent = ? WHERE conversation = ? AND parent = ?",
                (deleted.parent, conversation, turn),
            )
            db.execute("DELETE FROM turns WHERE id = ?", (turn,))
            if head == turn:
                rest = db.execute(
                    "SELECT id FROM turns WHERE conversation = ? AND parent IS ?"
                    " ORDER BY number DESC LIMIT 1",
                    (conversation, deleted.parent),
                ).fetchone()
                new_head = rest["id"] if rest and deleted.parent is None else deleted.parent
                db.execute(
                    "UPDATE conversations SET head = ? WHERE id = ?", (new_head, conversation)
                )
        self._forget_pictures(owner, rows)

    # -- pictures ----------------------------------------------------------------------------------

    def add_picture(self, owner: str, digest: str, name: str, facts: dict[str, Any]) -> None:
        """Record that an owner has uploaded a picture.

        If a turn already uses the picture, it keeps the name it has there.
        """
        with self._transaction() as db:
            new = ", name = excluded.name, facts = excluded.facts"
            changed = "" if _is_used(db, owner, digest) else new
            db.execute(
                "INSERT INTO pictures VALUES (?, ?, ?, ?, ?) ON CONFLICT (owner, digest)"
                f" DO UPDATE SET created = excluded.created{changed}",
                (owner, digest, name, _json(facts), time.time()),
            )

    def picture(self, owner: str, digest: str) -> tuple[str, dict[str, Any]] | None:
        """Return name and metadata of the owner's picture; None if they have not uploaded it."""
        rows = self._fetch(
            "SELECT name, facts FROM pictures WHERE owner = ? AND digest = ?", owner, digest
        )
        return (rows[0]["name"], json.loads(rows[0]["facts"])) if rows else None

    def forget_unused_pictures(self, before: float) -> None:
        """Remove pictures that were uploaded before a time and that no turn uses.

        Args:
            before: Seconds since the epoch.
        """
        turns = self._fetch(
            "SELECT owner, pictures FROM turns JOIN conversations"
            " ON conversations.id = turns.conversation"
        )
        used = {(row["owner"], digest) for row in turns for digest in json.loads(row["pictures"])}
        old = self._fetch("SELECT owner, digest FROM pictures WHERE created < ?", before)
        unused = {(row["owner"], row["digest"]) for row in old} - used
        for owner, digest in sorted(unused):
            self._forget_picture(owner, digest, before)

    # -- runs and data sets ------------------------------------------------------------------------

    def add_possession(
        self, kind: PossessionKind, name: str, owner: str, label: str, shared: bool = False
    ) -> None:
        """Record whose a run or data set is, unless that is known."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO possessions VALUES (?, ?, ?, ?, ?)",
                (kind, name, owner, label, shared),
            )

    def possessions(self, kind: PossessionKind) -> list[Possession]:
        """Return the runs or data sets of all owners, in the order of their labels."""
        rows = self._fetch("SELECT * FROM possessions WHERE kind = ?", kind)
        found = [
            Possession(row["name"], row["owner"], row["label"], bool(row["shared"])) for row in rows
        ]
        return sorted(found, key=lambda one: (one.label.casefold(), one.name))

    def possession(self, kind: PossessionKind, name: str) -> Possession | None:
        """Return one run or data set; None if it has no owner."""
        return next((one for one in self.possessions(kind) if one.name == name), None)

    def change_possession(self, kind: PossessionKind, possession: Possession) -> None:
        """Store a changed label, or whether it is shared."""
        with self._transaction() as db:
            db.execute(
                "UPDATE possessions SET label = ?, shared = ? WHERE kind = ? AND name = ?",
                (possession.label, possession.shared, kind, possession.name),
            )

    def remove_possession(self, kind: PossessionKind, name: str) -> None:
        """Forget a deleted run or data set."""
        with self._transaction() as db:
            db.execute("DELETE FROM possessions WHERE kind = ? AND name = ?", (kind, name))

    # -- settings ----------------------------------------------------------------------------------

    def settings(self, owner: str) -> dict[str, Any]:
        """Return the owner's settings."""
        rows = self._fetch("SELECT data FROM settings WHERE owner = ?", owner)
        return json.loads(rows[0]["data"]) if rows else {}

    def save_settings(self, owner: str, changes: dict[str, Any]) -> dict[str, Any]:
        """Update the owner's settings and return them; None removes an entry."""
        with self._transaction() as db:
            data = {**self.settings(owner), **changes}
            data = {name: value for name, value in data.items() if value is not None}
            db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (owner, _json(data)))
        return data


def _add_facts(db: sqlite3.Connection, turn: str, facts: dict[str, Any]) -> None:
    row = db.execute("SELECT facts FROM turns WHERE id = ?", (turn,)).fetchone()
    if row is not None:
        merged = _json({**json.loads(row["facts"]), **facts})
        db.execute("UPDATE turns SET facts = ? WHERE id = ?", (merged, turn))


def _is_used(db: sqlite3.Connection, owner: str, digest: str) -> bool:
    found = db.execute(
        "SELECT 1 FROM turns JOIN conversations ON conversations.id = turns.conversation"
        " WHERE owner = ? AND instr(pictures, ?) LIMIT 1",
        (owner, digest),
    )
    return found.fetchone() is not None


def _json(value: object) -> str:
    # NaN is not JSON: Python would read it back, but browsers cannot parse it.
    return json.dumps(value, allow_nan=False)


def _parse_turn(row: sqlite3.Row) -> StoredTurn:
    return StoredTurn(
        id=row["id"],
        parent=row["parent"],
        question=row["question"],
        pictures=tuple(json.loads(row["pictures"])),
        answer=row["answer"],
        state=row["state"],
        facts=json.loads(row["facts"]),
        verdict=row["verdict"],
    )
