"""The first screen: example pictures with questions that suit the model in use.

The pictures are generated from the world that the built-in model knows.
"""

from __future__ import annotations

import random
import secrets
import sqlite3
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from PIL import Image

from ui.chat.requests import log_error
from ui.texts import entry
from vqa_app.checkpoints.manifest import origin
from vqa_app.checkpoints.source import BUILTIN
from vqa_app.errors import ModelError, UsageError
from vqa_app.files import is_disk_error

if TYPE_CHECKING:
    from ui.chat.service import ChatService
    from vqa_app.serving.engine_pool import ModelChoice

Knowledge: TypeAlias = Literal["drawings", "trained", "general"]
"""What a model knows: the built-in one's drawings, these and somebody's own data, or much more."""
ABOUT: dict[Knowledge, str] = {
    "drawings": "start.aboutBuiltIn",
    "trained": "start.aboutTrained",
    "general": "start.aboutOther",
}
"""Keys of the text below the examples."""
CARDS = (
    (29, "shapes", "What is above the rectangle?"),
    (26, "things", "Where is the mushroom?"),
    (26, "charts", "What is the value of the black slice?"),
    (24, "digits", "What number is shown?"),
)
"""Number and room of a scene, and a question that the picture suggests."""
GENERAL_QUESTIONS = (
    "Describe this picture in one sentence.",
    "Which things are shown, and where?",
    "What does this chart say?",
    "What is written here?",
)
"""Questions for the same pictures that suit any model which describes pictures."""
WELL_ANSWERED = frozenset(
    ("colour", "shape", "size", "fill", "position", "relation", "existence", "negation", "absent")
)
"""Skills with at least 95 % correct answers of the built-in model on at most `MAX_SHAPES` shapes,
according to its MODEL_CARD.md."""
MAX_SHAPES = 4
_TRIES = 100


def knowledge(choice: ModelChoice) -> Knowledge:
    """Return what a model knows, as far as the first screen is concerned."""
    if choice.source == BUILTIN:
        return "trained" if choice.adapter else "drawings"
    try:
        return "trained" if origin(choice.source) == BUILTIN else "general"
    except (ModelError, OSError):
        return "general"


def first_screen(service: ChatService, owner: str) -> dict[str, Any]:
    """Return the example cards and a text about the owner's model.

    The pictures of the cards are stored as the owner's. There are none if the disk is full, so that
    the page still opens.
    """
    choice = _choice(service, owner)
    knows = knowledge(choice)
    shown: list[dict[str, Any]] = []
    try:
        for (image, question), general in zip(cards(), GENERAL_QUESTIONS, strict=True):
            asked = general if knows == "general" else question
            shown.append(service.add_example(owner, image, asked))
    except (OSError, sqlite3.OperationalError) as error:
        if not is_disk_error(error):
            raise
        log_error(error)
        shown = []
    return {
        "cards": shown,
        "about": entry(ABOUT[knows], model=choice.label),
        "only_drawings": knows == "drawings",
    }


def knowledge_in_use(service: ChatService, owner: str) -> Knowledge:
    """Return what the owner's model knows."""
    return knowledge(_choice(service, owner))


def _choice(service: ChatService, owner: str) -> ModelChoice:
    try:
        return service.models(owner).find(service.settings(owner).model)
    except ModelError:  # the chosen run has been deleted
        return service.pool.find(None)


@cache
def cards() -> tuple[tuple[Image.Image, str], ...]:
    """Return pictures and questions for the empty screen."""
    from finetune.pretrain.world import sample_scene

    return tuple((sample_scene(seed, room)[0], question) for seed, room, question in CARDS)


def add_scene(service: ChatService, owner: str) -> dict[str, Any]:
    """Store a new picture as the owner's and return it with a question that suits their model."""
    image, question = new_scene()
    if knowledge(_choice(service, owner)) == "general":
        question = GENERAL_QUESTIONS[0]
    return service.add_example(owner, image, question)


def new_scene() -> tuple[Image.Image, str]:
    """Return a new picture, and a question of a kind that the built-in model answers well."""
    from finetune.pretrain.world import make_scene, sample_scene

    for _ in range(_TRIES):
        seed = secrets.randbelow(1 << 40)
        if len(make_scene(seed, "shapes", "test").items) > MAX_SHAPES:
            continue
        image, questions = sample_scene(seed, "shapes")
        good = [qa.question for qa in questions if qa.skill in WELL_ANSWERED and qa.short]
        if good:
            return image, random.Random(seed).choice(good)
    raise UsageError("No suitable scene was found.", "Try again.")
