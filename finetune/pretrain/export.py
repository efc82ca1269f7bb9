"""Exports scenes and their questions as LLaVA JSON and PNG pictures, like users' data.

    python -m finetune.pretrain.export --split test --room shapes --skill count --n 1000 --out DIR
    vqa-app eval --data DIR/test.json

Each row is one picture with its questions of one skill (`question_type`), so that results are
reported by skill. Follow-ups depend on the previous turn: evaluate them with
`vqa-app eval --history`.
"""

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.pretrain.sequences import turns_of
from finetune.pretrain.world import QA, ROOMS, Room, Scene, Split
from finetune.pretrain.world.dialogues import make_dialogue
from finetune.pretrain.world.mixture import World, open_rooms
from finetune.pretrain.world.pairs import DRAWN_ROOMS, make_pair

EVERY_ROOM = World(dict.fromkeys(ROOMS, 1.0))


@dataclass(frozen=True)
class Selection:
    """Which questions are exported; scenes have `least` to `most` objects (None: any number)."""

    split: Split = "test"
    world: World = EVERY_ROOM
    skills: tuple[str, ...] = ()
    least: int = 1
    most: int | None = None
    short: bool | None = True
    """The single-word style where it exists (True), sentences (False), or both (None)."""
    plain: bool = True
    """Whether to leave out typing noise such as typos."""

    def scenes(self, seed: int) -> Iterator[tuple[int, Scene]]:
        """Yield matching scenes with their numbers, from number `seed` on."""
        number = seed
        while True:
            scene = self.world.make_scene(number, self.split)
            if len(scene.items) >= self.least and len(scene.items) <= (self.most or 10**6):
                yield number, scene
            number += 1

    def questions(self, number: int, scene: Scene) -> dict[str, list[QA]]:
        """Return the selected questions about a scene, by skill."""
        found: dict[str, list[QA]] = defaultdict(list)
        for qa in self.world.ask(scene, random.Random(f"export-{number}"), self.split):
            if not self.skills or qa.skill in self.skills:
                found[qa.skill].append(qa)
        return found


def to_record(
    qas: list[QA],
    pictures: str | list[str],
    skill: str,
    rng: random.Random,
    short: bool | None,
    plain: bool,
) -> dict[str, Any]:
    """Return a LLaVA record with its pictures before the first question."""
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
    selection: Selection,
    seed: int = 0,
    per_skill: bool = False,
) -> Path:
    """Write at least `count` questions, or with `per_skill` as many of each selected skill.

    Returns:
        The JSON file; the pictures are in `pictures/` beside it, named after their scenes.
    """
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    asked: dict[str, int] = defaultdict(int)
    for number, scene in selection.scenes(seed):
        if sum(asked.values()) >= count and not per_skill:
            break
        if per_skill and all(asked[skill] >= count for skill in selection.skills):
            break
        found = {
            skill: qas
            for skill, qas in selection.questions(number, scene).items()
            if not per_skill or asked[skill] < count
        }
        if not found:
            continue
        name = f"pictures/{scene.room}-{number}.png"
        selection.world.draw(scene).save(folder / name)
        rng = random.Random(f"dress-{number}")
        for skill, qas in sorted(found.items()):
            groups = [[qa] for qa in qas] if any(qa.before for qa in qas) else [qas]
            records += [
                {
                    "id": f"{number}-{skill}-{k}",
                    **to_record(group, name, skill, rng, selection.short, selection.plain),
                }
                for k, group in enumerate(groups)
            ]
            asked[skill] += len(qas)
    return _write_records(folder / f"{selection.split}.json", records)


def export_pairs(
    folder: Path,
    count: int,
    split: Split = "test",
    seed: int = 0,
    short: bool | None = True,
    rooms: Mapping[str, Room] = DRAWN_ROOMS,
) -> Path:
    """Write at least `count` questions about two pictures each, and return the JSON file."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    asked, number = 0, seed
    while asked < count:
        pair = make_pair(number, split, rooms=rooms)
        names = [f"pictures/pair-{number}-{k}.png" for k in (1, 2)]
        for name, scene in zip(names, pair.scenes, strict=True):
            rooms[scene.room].draw(scene).save(folder / name)
        rng = random.Random(f"dress-pair-{number}")
        record = to_record(list(pair.questions), names, "pair", rng, short, plain=True)
        records.append({"id": f"pair-{number}", **record})
        asked += len(pair.questions)
        number += 1
    return _write_records(folder / f"{split}_pairs.json", records)


def export_dialogues(
    folder: Path, count: int, world: World, split: Split = "test", seed: int = 0
) -> Path:
    """Write `count` dialogues about up to three pictures that come later, and return the file."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    for number in range(seed, seed + count):
        rng = random.Random(f"export-dialogue-{split}-{number}")
        scenes = [world.make_scene(3 * number + k, split) for k in range(rng.randint(1, 3))]
        names = [f"pictures/dialogue-{number}-{k}.png" for k in range(1, len(scenes) + 1)]
        for name, scene in zip(names, scenes, strict=True):
            world.draw(scene).save(folder / name)
        short = rng.choice((True, False))
        conversation = []
        for turn in make_dialogue(world, scenes, rng, split).turns:
            ((question, answer),) = turns_of(turn.qa, rng, short, plain=True)
            picture = "<image>\n" if turn.new_picture else ""
            conversation.append({"from": "human", "value": picture + question})
            conversation.append({"from": "gpt", "value": answer})
        records.append(
            {
                "id": f"dialogue-{number}",
                "image": names,
                "question_type": "dialogue",
                "conversations": conversation,
            }
        )
    return _write_records(folder / f"{split}_dialogues.json", records)


def _write_records(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(records, indent=1, ensure_ascii=False), encoding="utf-8")
    return path


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m finetune.pretrain.export", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--split", choices=("train", "test"), default="test")
    parser.add_argument(
        "--room", action="append", help="default: all of the drawn rooms, without wide shapes"
    )
    parser.add_argument("--photos", type=Path, help="packed photographs, for the room `photos`")
    parser.add_argument("--icons", type=Path, help="packed icons, for the room `icons`")
    parser.add_argument("--pairs", action="store_true", help="export questions about two pictures")
    parser.add_argument("--dialogues", action="store_true", help="export dialogues, --n of them")
    parser.add_argument("--varied", action="store_true", help="use synonyms and further wordings")
    parser.add_argument("--skill", action="append", default=[], help="default: all")
    parser.add_argument("--least", type=int, default=1, help="fewest objects in a scene")
    parser.add_argument("--most", type=int, help="most objects in a scene")
    parser.add_argument("--n", type=int, default=1000, help="questions; of each --skill if args")
    parser.add_argument("--style", choices=("short", "sentence", "both"), default="short")
    parser.add_argument("--seed", type=int, default=0, help="number of the first scene")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    short = {"short": True, "sentence": False, "both": None}[args.style]
    rooms = {**ROOMS, **open_rooms(args.photos, args.icons)[0]}
    if unknown := [name for name in args.room or () if name not in rooms]:
        parser.error(f"No such room: {', '.join(unknown)}. There are {', '.join(rooms)}.")
    world = World(dict.fromkeys(args.room or ROOMS, 1.0), rooms, args.varied)
    if args.pairs:
        paired = {name: rooms[name] for name in args.room or DRAWN_ROOMS}
        print(export_pairs(args.out, args.n, args.split, args.seed, short, paired))
        return
    if args.dialogues:
        print(export_dialogues(args.out, args.n, world, args.split, args.seed))
        return
    selection = Selection(
        args.split,
        world,
        tuple(args.skill),
        args.least,
        args.most,
        short,
    )
    print(export(args.out, args.n, selection, args.seed, per_skill=bool(args.skill)))


if __name__ == "__main__":
    main()
