"""Tables of the things that pictures show: their names and their kinds."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Concept:
    """A kind of thing that pictures show."""

    names: tuple[str, ...]
    """Synonyms, the most common first."""
    kind: str
    """What kind of thing it is; in brackets if nobody would call it that."""
    keys: tuple[str, ...]
    """The names of its icons, or the folders of its photographs."""

    @property
    def name(self) -> str:
        """The most common name."""
        return self.names[0]

    @property
    def words(self) -> tuple[str, ...]:
        """All names, followed by the kind if people would use it as a name."""
        return self.names if self.kind.startswith("(") else (*self.names, self.kind)


def read_concepts(path: Path) -> tuple[Concept, ...]:
    """Read a table of lines "kind: name, synonym = key key; name; ...".

    A concept without keys has its names as keys. Lines that begin with # are comments.
    """
    return tuple(_concepts(path.read_text("utf-8")))


def _concepts(table: str) -> Iterator[Concept]:
    for line in table.splitlines():
        if not line or line.startswith("#"):
            continue
        kind, _, entries = line.partition(": ")
        for entry in entries.split(";"):
            names, _, keys = entry.partition("=")
            listed = tuple(name.strip() for name in names.split(","))
            yield Concept(listed, kind, tuple(keys.split()) or listed)


_SINGULAR_ENDINGS = ("ss", "us", "is", "ros", "face with sunglasses", "face with hearts")
_MASS_NOUN_LIST = """american football, bacon, badminton, beer, bowling, bread, broccoli, butter,
canned food, champagne, chocolate, clothing, coffee, corn, curry, dna, fire, garlic, ginger, golf,
guacamole, honey, lacrosse, lettuce, lightning, luggage, mashed potato, meat, milk, money,
ping pong, popcorn, rain, rice, salt, shaved ice, sushi, table tennis, tea, tennis, toilet paper,
whisky, wine, yarn"""
_MASS_NOUNS = frozenset(_MASS_NOUN_LIST.replace("\n", " ").split(", "))


def is_plural(word: str) -> bool:
    """Return whether a name is a plural, such as "grapes" or "scissors"."""
    return word.endswith("s") and not word.endswith(_SINGULAR_ENDINGS)


def is_countable(word: str) -> bool:
    """Return whether a name takes "a" and a plural, unlike "bread" or "scissors"."""
    return word not in _MASS_NOUNS and not is_plural(word)


def noun_phrase(word: str) -> str:
    """Return the word with its article if it takes one: "an apple", "grapes", "bread"."""
    if not is_countable(word):
        return word
    return f"{'an' if word[0].lower() in 'aeiou' else 'a'} {word}"


def it_is(word: str) -> str:
    """Return a clause such as "it is a dog", "they are grapes" or "it is bread"."""
    return f"{'they are' if is_plural(word) else 'it is'} {noun_phrase(word)}"


def it_may_be(word: str) -> str:
    """Return a clause such as "it may be a dog", "they may be grapes" or "it may be bread"."""
    return f"{'they' if is_plural(word) else 'it'} may be {noun_phrase(word)}"
