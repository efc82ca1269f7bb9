"""Questions about a scene's objects, for every room whose scenes consist of objects.

A skill is a function of an `ObjectContext`. It makes one question, or returns None where the scene
does not allow it: no object fits, or the right answer would be a matter of opinion. A new skill is
one function and one line in `WEIGHTS`.
"""

import random
from collections.abc import Mapping
from dataclasses import replace

from finetune.pretrain.world.objects import (
    appearance,
    comparison,
    description,
    position,
    presence,
)
from finetune.pretrain.world.objects.context import ObjectContext, Skill
from finetune.pretrain.world.scene import QA, Scene, Split
from finetune.pretrain.world.wording.references import Vocabulary

WEIGHTS: Mapping[Skill, float] = {
    presence.existence: 8,
    presence.negation: 5,
    appearance.colour: 10,
    appearance.kind: 9,
    appearance.fill: 3,
    appearance.size: 2.5,
    appearance.confirm: 6,
    presence.count: 12,
    position.position: 8,
    position.what_at: 3,
    position.side: 3,
    position.relation: 12,
    position.beside: 4,
    comparison.extreme: 6,
    comparison.superlative: 4,
    comparison.bigger: 4,
    comparison.more: 3,
    comparison.odd: 5,
    comparison.same: 3,
    comparison.all_same: 2,
    presence.logic: 5,
    description.statement: 5,
    description.colours: 1,
    description.caption: 1.5,
    description.describe: 0.7,
    presence.false_premise: 4,
    description.unknowable: 0.7,
    description.followup: 4,
}
"""How often each skill is drawn; relations take the longest to learn, so they come often."""


def ask_about_objects(
    scene: Scene,
    rng: random.Random,
    split: Split,
    words: Vocabulary,
    count: int = 12,
    weights: Mapping[Skill, float] = WEIGHTS,
) -> list[QA]:
    """Return up to `count` different questions about the scene's objects.

    Args:
        scene: What is asked about.
        rng: The source of randomness.
        split: Held-out wordings occur in "test" only.
        words: The room's words for its objects.
        count: The most questions that are returned.
        weights: How often each skill is drawn.
    """
    context = ObjectContext(scene, rng, split, words)
    skills = rng.choices(list(weights), list(weights.values()), k=count * 2)
    made: dict[str, QA] = {}
    for skill in skills:
        context.about, context.counts = [], []
        qa = skill(context)
        if qa is not None:
            qa = replace(qa, about=tuple(context.about), counts=tuple(context.counts))
            made.setdefault(qa.question, qa)
        if len(made) == count:
            break
    return list(made.values())
