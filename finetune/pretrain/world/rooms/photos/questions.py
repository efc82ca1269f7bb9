"""The questions of the photographs room: what it is, what kind of thing, and where it is.

A photograph shows more than its label says. So there are no questions about numbers, and questions
about something absent name things of another kind than the labelled object.
"""

import random
from collections.abc import Mapping
from dataclasses import replace

from finetune.pretrain.world.objects import description, position
from finetune.pretrain.world.objects.context import Skill as ObjectSkill
from finetune.pretrain.world.objects.questions import ask_about_objects
from finetune.pretrain.world.rooms import named_things
from finetune.pretrain.world.rooms.concepts import is_countable
from finetune.pretrain.world.rooms.named_things import NamedScene, Skill, ask_about_names
from finetune.pretrain.world.rooms.photos.store import class_by_name, photo_classes
from finetune.pretrain.world.scene import QA, Scene, Split
from finetune.pretrain.world.wording.references import Vocabulary

NAME_WEIGHTS: Mapping[Skill, float] = {
    named_things.name: 6,
    named_things.is_it: 4,
    named_things.presence: 3,
    named_things.kind_presence: 4,
    named_things.member: 4,
    named_things.kind: 2,
}
OBJECT_WEIGHTS: Mapping[ObjectSkill, float] = {
    position.position: 3,
    position.side: 3,
    description.caption: 2,
    description.unknowable: 1,
}
"""How often each skill is drawn."""


def ask(scene: Scene, rng: random.Random, split: Split) -> list[QA]:
    """Return questions about a photograph.

    Where `scene.extra["sure"]` is False, answers say what it may be.
    """
    shown = class_by_name()[scene.items[0].kind]
    other_kinds = [c for c in photo_classes() if c.kind != shown.kind or c.name == shown.name]
    named = NamedScene(
        scene.items, (shown,), other_kinds, rng, split, scene.extra.get("sure", True)
    )
    qas = ask_about_names(named, count=6, weights=NAME_WEIGHTS)
    # Near misses, such as another breed of dog than the one that is shown.
    same_kind = [c for c in photo_classes() if c.kind == shown.kind]
    if len(same_kind) > 1 and rng.random() < 0.5:
        near_miss = named_things.is_it(replace(named, candidates=same_kind))
        qas += [near_miss] if near_miss else []
    if is_countable(shown.name):
        words = Vocabulary("thing", tuple(c.name for c in photo_classes()), ())
        qas += ask_about_objects(scene, rng, split, words, count=3, weights=OBJECT_WEIGHTS)
    if not named.sure:
        hedged = "The picture may show"
        qas = [replace(qa, sentence=qa.sentence.replace("The picture shows", hedged)) for qa in qas]
    return list({qa.question: qa for qa in qas}.values())
