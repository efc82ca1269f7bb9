"""The questions of the icons room: what things are, and how they are placed."""

import random
from collections.abc import Mapping

from finetune.pretrain.world.objects import comparison, description, position
from finetune.pretrain.world.objects import presence as object_presence
from finetune.pretrain.world.objects.context import Skill
from finetune.pretrain.world.objects.questions import ask_about_objects
from finetune.pretrain.world.rooms.concepts import is_countable
from finetune.pretrain.world.rooms.icons.store import concepts_by_name, icon_concepts
from finetune.pretrain.world.rooms.named_things import NamedScene, ask_about_names
from finetune.pretrain.world.scene import QA, Scene, Split
from finetune.pretrain.world.wording.references import Vocabulary

OBJECT_WEIGHTS: Mapping[Skill, float] = {
    object_presence.negation: 2,
    object_presence.count: 4,
    object_presence.logic: 3,
    object_presence.false_premise: 4,
    position.position: 6,
    position.what_at: 4,
    position.side: 3,
    position.relation: 8,
    position.beside: 5,
    comparison.extreme: 4,
    comparison.more: 2,
    description.statement: 4,
    description.caption: 2,
    description.unknowable: 0.5,
}
"""How often each skill on objects is drawn; icons have no colour, fill or size of their own."""


def ask(scene: Scene, rng: random.Random, split: Split) -> list[QA]:
    """Return questions about a scene of icons."""
    shown = tuple(concepts_by_name()[item.kind] for item in scene.items)
    named = NamedScene(scene.items, shown, icon_concepts(), rng, split)
    qas = ask_about_names(named, count=6)
    if all(is_countable(item.kind) for item in scene.items):
        # Mass nouns and plurals do not fit into sentences with "a", "the" or a number.
        kinds = tuple(c.name for c in icon_concepts() if is_countable(c.name))
        words = Vocabulary("thing", kinds, ())
        qas += ask_about_objects(scene, rng, split, words, count=6, weights=OBJECT_WEIGHTS)
    return list({qa.question: qa for qa in qas}.values())
