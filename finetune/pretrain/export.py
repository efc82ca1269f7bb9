"""Scenes and their questions as files: LLaVA JSON and PNG pictures, as users bring them.

    python -m finetune.pretrain.export --split test --room shapes --skill count --n 1000 --out DIR
    vqa-app eval --data DIR/test.json

Each row is one picture with its questions of one skill (`question_type`), so that figures come by
skill. Follow-ups lean on the turn before them: measure them with `vqa-app eval --history`.
"""

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.pretrain.scene_pool import draw_room
from finetune.pretrain.sequences import turns_of
from finetune.pretrain.world import QA, ROOMS, Scene, Split, make_scene
from finetune.pretrain.world.pairs import make_pair


@dataclass(frozen=True)
class Selection:
    """Which questions are wanted. `most` bounds the objects of a scene; None: any number."""

    split: Split = "test"
    rooms: Mapping[str, float] | None = None
    skills: tuple[str, ...] = ()
    least: int = 1
    most: int | None = None
    short: bool | None = True
    """The single-word style where it exists (True), sentences (False), or both (None)."""
    plain: bool = True
    """Without typing habits (case, typos)."""

    def scenes(self, seed: int) -> Iterator[tuple[int, Scene]]:
        weights = self.rooms or dict.fromkeys(ROOMS, 1.0)
        number = seed
        while True:
            scene = make_scene(number, draw_room(number, weights), self.split)
            if len(scene.items) >= self.least and len(scene.items) <= (self.most or 10**6):
                yield number, scene
            number += 1

    def questions(self, number: int, scene: Scene) -> dict[str, list[QA]]:
        """By skill."""
        found: dict[str, list[QA]] = defaultdict(list)
        for qa in ROOMS[scene.room].ask(scene, random.Random(f"export-{number}"), self.split):
            if not self.skills or qa.skill in self.skills:
                found[qa.skill].append(qa)
        return found


def row(
    qas: list[QA],
    pictures: str | list[str],
    skill: str,
    rng: random.Random,
    short: bool | None,
    plain: bool,
) -> dict[str, Any]:
    """One LLaVA record, its pictures before the first question."""
    turns = [turn for qa in qas for turn in turns_of(qa, rng, short, plain)]
    head = "<image>\n" * (1 if isinstance(pictures, str) else len(pictures))
    conversation = []
    for k, (question, answer) in enumerate(turns):
        conversation.append({"from": "human", "value": ("" if k else head) + question})
        conversation.append({"from": "gpt", "value": answer})
    return {"image": pictures, "question_type": skill, "conversations": conversation}


def export(
    folder: Path,
    count: int,
    chosen: Selection,
    seed: int = 0,
    per_skill: bool = False,
) -> Path:
    """Writes at least `count` questions (of every named skill with `per_skill`).

    Returns the JSON file; pictures stand in `pictures/` beside it, named by their scene.
    """
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    asked: dict[str, int] = defaultdict(int)
    for number, scene in chosen.scenes(seed):
        if sum(asked.values()) >= count and not per_skill:
            break
        if per_skill and all(asked[skill] >= count for skill in chosen.skills):
            break
        found = {
            skill: qas
            for skill, qas in chosen.questions(number, scene).items()
            if not per_skill or asked[skill] < count
        }
        if not found:
            continue
        name = f"pictures/{scene.room}-{number}.png"
        ROOMS[scene.room].draw(scene).save(folder / name)
        rng = random.Random(f"dress-{number}")
        for skill, qas in sorted(found.items()):
            groups = [[qa] for qa in qas] if any(qa.before for qa in qas) else [qas]
            records += [
                {
                    "id": f"{number}-{skill}-{k}",
                    **row(group, name, skill, rng, chosen.short, chosen.plain),
                }
                for k, group in enumerate(groups)
            ]
            asked[skill] += len(qas)
    path = folder / f"{chosen.split}.json"
    path.write_text(json.dumps(records, indent=1, ensure_ascii=False), encoding="utf-8")
    return path


def export_pairs(
    folder: Path,
    count: int,
    split: Split = "test",
    seed: int = 0,
    short: bool | None = True,
) -> Path:
    """Writes at least `count` questions about two pictures each. Returns the JSON file."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    asked, number = 0, seed
    while asked < count:
        pair = make_pair(number, split)
        names = [f"pictures/pair-{number}-{k}.png" for k in (1, 2)]
        for name, scene in zip(names, pair.scenes, strict=True):
            ROOMS[scene.room].draw(scene).save(folder / name)
        rng = random.Random(f"dress-pair-{number}")
        record = row(list(pair.questions), names, "pair", rng, short, plain=True)
        records.append({"id": f"pair-{number}", **record})
        asked += len(pair.questions)
        number += 1
    path = folder / f"{split}_pairs.json"
    path.write_text(json.dumps(records, indent=1, ensure_ascii=False), encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m finetune.pretrain.export", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--split", choices=("train", "test"), default="test")
    parser.add_argument("--room", action="append", choices=sorted(ROOMS), help="default: all")
    parser.add_argument("--pairs", action="store_true", help="two pictures a conversation")
    parser.add_argument("--skill", action="append", default=[], help="default: all")
    parser.add_argument("--least", type=int, default=1, help="fewest objects in a scene")
    parser.add_argument("--most", type=int, help="most objects in a scene")
    parser.add_argument("--n", type=int, default=1000, help="questions; of each --skill if given")
    parser.add_argument("--style", choices=("short", "sentence", "both"), default="short")
    parser.add_argument("--seed", type=int, default=0, help="number of the first scene")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    short = {"short": True, "sentence": False, "both": None}[given.style]
    if given.pairs:
        print(export_pairs(given.out, given.n, given.split, given.seed, short))
        return
    chosen = Selection(
        given.split,
        dict.fromkeys(given.room, 1.0) if given.room else None,
        tuple(given.skill),
        given.least,
        given.most,
        short,
    )
    print(export(given.out, given.n, chosen, given.seed, per_skill=bool(given.skill)))


if __name__ == "__main__":
    main()
