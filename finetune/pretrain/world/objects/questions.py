"""Questions about a scene's objects, for every room whose scenes are made of items.

Each function makes one question of one skill, or returns None where the scene does not allow it
(no object fits, or the right answer would be a matter of taste). `about_items` draws from them.
"""

import random
from collections.abc import Callable
from dataclasses import replace

from finetune.pretrain.world.objects.appearance import Looks
from finetune.pretrain.world.objects.comparison import Comparing
from finetune.pretrain.world.objects.description import Telling
from finetune.pretrain.world.objects.position import Places
from finetune.pretrain.world.objects.presence import Presence
from finetune.pretrain.world.scene import QA, Scene, Split
from finetune.pretrain.world.wording.references import Vocabulary

__all__ = ["Asker", "Vocabulary", "about_items"]


class Asker(Presence, Looks, Places, Comparing, Telling):
    """A scene's objects, and all that can be asked about them."""


# Skill functions and how often each is drawn; relations and descriptions cost the most to learn.
WEIGHTS: dict[str, float] = {
    "existence": 8,
    "negation": 5,
    "colour": 10,
    "kind": 9,
    "fill": 3,
    "size": 2.5,
    "confirm": 6,
    "count": 12,
    "position": 8,
    "what_at": 3,
    "side": 3,
    "relation": 12,
    "beside": 4,
    "extreme": 6,
    "superlative": 4,
    "bigger": 4,
    "more": 3,
    "odd": 5,
    "same": 3,
    "all_same": 2,
    "logic": 5,
    "statement": 5,
    "colours": 1,
    "caption": 1.5,
    "describe": 0.7,
    "false_premise": 4,
    "unknowable": 0.7,
    "followup": 4,
}


def about_items(
    scene: Scene,
    rng: random.Random,
    split: Split,
    words: Vocabulary,
    count: int = 12,
    weights: dict[str, float] | None = None,
) -> list[QA]:
    """Up to `count` different questions about the scene's items, at least one of some skill.

    `weights` replaces `WEIGHTS` (the skill functions of `Asker` by name).
    """
    asker = Asker(scene, rng, split, words)
    weights = WEIGHTS if weights is None else weights
    names = rng.choices(list(weights), list(weights.values()), k=count * 2)
    made: dict[str, QA] = {}
    for name in names:
        skill: Callable[[], QA | None] = getattr(asker, name)
        asker.about, asker.counts = [], []
        qa = skill()
        if qa is not None:
            known = replace(qa, about=tuple(asker.about), counts=tuple(asker.counts))
            made.setdefault(qa.question, known)
        if len(made) == count:
            break
    return list(made.values())
