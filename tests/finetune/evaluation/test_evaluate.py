"""Questions are answered in batches, scored and stored; interrupted evaluations are continued."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from finetune.data.read import PictureSource, Row, Turn
from finetune.evaluation.evaluate import compare, summarize_predictions
from finetune.evaluation.predictions import Prediction
from finetune.evaluation.questions import evenly_spaced, make_questions
from tests.tiny import picture
from vqa_app.errors import DataError, ModelError, UsageError


def row(name: str, *turns: tuple[str, str], pictures: int = 1, system: str = "") -> Row:
    """Make a row of questions and answers about noise pictures, shown with the first question."""
    sources = [PictureSource.data(_png(f"{name}-{i}"), f"{name}-{i}.png") for i in range(pictures)]
    messages = [Turn("system", (system,))] if system else []
    for index, (question, answer) in enumerate(turns):
        shown = tuple(sources) if index == 0 else ()
        messages += [Turn("user", (*shown, question)), Turn("assistant", (answer,))]
    return Row(name, "data.json", 1, tuple(messages), tuple((answer,) for _, answer in turns))


def _png(name: str) -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    picture(sum(name.encode())).image.save(buffer, "PNG")
    return buffer.getvalue()


def rows() -> list[Row]:
    return [
        row("a", ("What is it?", "circle"), ("Which colour?", "red"), system="Be brief."),
        row("b", ("How many stars?", "3")),
        row("two", ("Which is bigger?", "first"), ("Why?", "its size"), pictures=2),
        row("text", ("Who are you?", "a model"), pictures=0),
    ]


@pytest.fixture(scope="module")
def tiny(tiny_llava_dir: Path) -> tuple[Any, Any, Any]:
    from vqa_app.checkpoints.loader import load_model

    loaded = load_model(tiny_llava_dir)
    return loaded.model, loaded.processor, loaded.capabilities


def opened(data: Row) -> dict[str, Any]:
    return {source.key: source.open() for source in data.pictures}


def test_each_question_is_asked_alone_with_the_pictures_shown_up_to_it() -> None:
    data = rows()
    questions = make_questions(data)
    assert [q.id for q in questions] == ["a#1", "a#2", "b", "two#1", "two#2", "text"]
    second = questions[1].conversation(opened(data[0]))
    assert second.system == "Be brief."
    assert [m.text for m in second.dialogue] == ["Which colour?"]
    assert len(second.pictures) == 1
    assert len(questions[4].conversation(opened(data[2])).pictures) == 2


def test_history_puts_earlier_turns_before_the_question() -> None:
    data = rows()[0]
    second = make_questions([data], history=True)[1].conversation(opened(data))
    assert [m.text for m in second.dialogue] == ["What is it?", "circle", "Which colour?"]


def test_questions_are_grouped_by_picture_and_ids_are_unique() -> None:
    first, other = row("x", ("What?", "a cat")), row("y", ("What?", "a dog"))
    again = replace(first, turns=(Turn("user", (*first.pictures, "Who?")), first.turns[1]))
    assert [q.id for q in make_questions([first, other, again])] == ["x", "x (2)", "y"]


def test_a_limit_chooses_evenly() -> None:
    questions = make_questions([row(str(i), ("What?", "it")) for i in range(10)])
    assert [q.id for q in evenly_spaced(questions, 4)] == ["0", "2", "5", "7"]
    assert len(evenly_spaced(questions, None)) == 10


def test_question_types_come_from_the_row_or_the_question() -> None:
    typed = replace(rows()[1], question_type="count")
    assert [q.type for q in make_questions([*rows()[:2], typed])][1:] == [
        "which colour",
        "how many",
        "count",
    ]


def test_predictions_have_loss_image_gain_and_prompt(tiny: tuple[Any, Any, Any]) -> None:
    import torch

    from finetune.evaluation.evaluate import answer_questions
    from vqa_app.pictures.picture import blank_like
    from vqa_app.prompts.conversation import Conversation, Message
    from vqa_app.prompts.prompt import encode

    model, processor, capabilities = tiny
    data = rows()
    chunks: list[int] = []
    predictions = answer_questions(
        model,
        processor,
        capabilities,
        make_questions(data),
        on_chunk=lambda chunk: chunks.append(len(chunk)),
    )
    assert chunks == [6]
    assert predictions[5].image_gain is None
    assert predictions[5].loss is not None
    second = predictions[1]
    assert second.source == "data.json, row 1"
    assert second.pictures == ("a-0.png",)
    assert second.prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<image>\nWhich colour?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )

    def loss(shown: Any) -> float:
        question = Conversation.ask("Which colour?", [shown], "Be brief.")
        prompt = encode(processor, question.then(Message.assistant("red")), answer_next=False)
        labels = prompt.inputs["input_ids"].masked_fill(~prompt.answer_mask, -100)
        with torch.no_grad():
            return model(**prompt.inputs, labels=labels).loss.item()

    shown = data[0].pictures[0].open()
    assert second.loss == pytest.approx(loss(shown), rel=1e-4)
    assert second.image_gain == pytest.approx(loss(blank_like(shown)) - loss(shown), abs=1e-3)


def prediction(name: str, right: bool, **changes: Any) -> Prediction:
    values = {"loss": 1.0, "answer_tokens": 2, "image_gain": 0.5} | changes
    answer = "yes" if right else "no"
    return Prediction(
        name, "d, row 1", ("p",), "is it", "is it?", ("yes",), answer, float(right), **values
    )


def test_losses_are_weighted_by_tokens() -> None:
    result = summarize_predictions(
        "m",
        [
            prediction("1", True),
            prediction("2", False, loss=4.0, answer_tokens=1, image_gain=None),
        ],
        1.0,
    )
    assert result.scores.vqa_accuracy == 0.5
    assert result.loss == pytest.approx(2.0)
    assert result.image_gain == 0.5
    assert result.types == {"is it": (2, 0.5)}
    json.dumps(result.to_json())
    with pytest.raises(DataError):
        summarize_predictions("m", [], 1.0)


def test_two_models_are_compared_on_the_same_questions() -> None:
    names = [str(i) for i in range(12)]
    good = summarize_predictions("good", [prediction(n, True) for n in names], 1.0)
    bad = summarize_predictions("bad", [prediction(n, n in "01") for n in reversed(names)], 1.0)
    test = compare(good, bad)
    assert test.difference == pytest.approx(10 / 12)
    assert test.p_value < 0.01
    with pytest.raises(UsageError, match="different questions"):
        compare(good, summarize_predictions("less", [prediction("0", True)], 1.0))


def data_file(folder: Path) -> Path:
    """Write eight questions about two pictures in LLaVA's format."""
    records = []
    for name in ("one", "two"):
        (folder / f"{name}.png").write_bytes(_png(name))
        turns = []
        for i in range(4):
            question = f"Question {i}?" if i else "<image>\nQuestion 0?"
            turns += [{"from": "human", "value": question}, {"from": "gpt", "value": f"a{i}"}]
        records.append({"id": name, "image": f"{name}.png", "conversations": turns})
    path = folder / "data.json"
    path.write_text(json.dumps(records))
    return path


def test_an_interrupted_evaluation_is_continued(
    tiny_llava_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = import_module("finetune.evaluation.evaluate")
    monkeypatch.setattr(module, "_CHUNK", 3)
    data, out = data_file(tmp_path), tmp_path / "predictions.jsonl"

    def stop(done: int, total: int) -> None:
        assert total == 8
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        module.evaluate(tiny_llava_dir, data, out=out, max_new_tokens=4, on_progress=stop)
    with out.open("a") as file:
        file.write('{"id": "two#3", "sour')  # killed while writing
    chunks: list[int] = []
    result = module.evaluate(
        tiny_llava_dir,
        data,
        out=out,
        max_new_tokens=4,
        on_progress=lambda done, total: chunks.append(done),
    )
    assert chunks == [6, 8]
    assert result.scores.questions == 8
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["id"] for line in lines] == [
        f"{n}#{i}" for n in ("one", "two") for i in range(1, 5)
    ]
    assert [Prediction.from_json(line) for line in lines] == list(result.predictions)
    summary = json.loads((tmp_path / "predictions.summary.json").read_text())
    assert summary["result"]["scores"]["questions"] == 8
    with pytest.raises(UsageError, match="another model or other data"):
        module.evaluate(tiny_llava_dir, data, out=out, max_new_tokens=5)


def test_the_command_prints_a_table_and_a_comparison(tiny_llava_dir: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from finetune.cli.evaluate import app

    data = str(data_file(tmp_path))
    model = str(tiny_llava_dir)
    common = ["eval", "--data", data, "--model", model, "--max-new-tokens", "3", "--losses", "2"]
    plain = CliRunner().invoke(app, [*common, "--against", model])
    assert plain.exit_code == 0, plain.output
    assert "VQA accuracy" in plain.output
    assert "question 0" in plain.output
    assert "+0.00 points" in plain.output
    assert "p = 1" in plain.output
    shown = CliRunner().invoke(app, [*common, "--json", "--limit", "4"])
    values = json.loads(shown.stdout)
    assert values["scores"]["questions"] == 4
    assert values["loss"] > 0


def test_every_model_option_of_the_command_reaches_the_loader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []

    def load(**options: Any) -> None:
        calls.append(options)
        raise ModelError("enough")

    monkeypatch.setattr("vqa_app.checkpoints.loader.load_model", load)
    monkeypatch.setattr("finetune.cli.evaluate.stay_offline", lambda: calls.append({}))
    words = "-m a/b --adapter c/d --quantize 4bit --device cpu --dtype float32 --revision e"
    command("--data", data_file(tmp_path), *words.split(), "--offline")
    options = {
        "name": "a/b",
        "adapter": "c/d",
        "quantize": "4bit",
        "device": "cpu",
        "dtype": "float32",
        "revision": "e",
        "offline": True,
    }
    assert calls == [{}, options]


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a model is loaded."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("vqa_app.checkpoints.loader.load_model", refuse)


def command(*options: object) -> BaseException | None:
    """Run `eval` and return the exception that it ends with."""
    from typer.testing import CliRunner

    from finetune.cli.evaluate import app

    return CliRunner().invoke(app, ["eval", *map(str, options)]).exception


def test_bad_data_is_refused_before_a_model_is_loaded(tmp_path: Path, no_model: None) -> None:
    data = data_file(tmp_path)
    (tmp_path / "two.png").unlink()
    assert isinstance(command("--data", data), DataError)


def test_the_data_is_read_once(
    tiny_llava_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.evaluation import questions

    read, files = questions.read_rows, []
    monkeypatch.setattr(questions, "read_rows", lambda *args: files.append(args) or read(*args))
    common = ("--data", data_file(tmp_path), "--max-new-tokens", 2, "--losses", 0)
    assert command(*common, "--model", tiny_llava_dir, "--against", tiny_llava_dir) is None
    assert len(files) == 1


def test_files_with_other_predictions_are_refused_before_a_model_is_loaded(
    tiny_llava_dir: Path, tmp_path: Path, no_model: None
) -> None:
    from finetune.evaluation.predictions import PredictionsFile
    from finetune.evaluation.questions import evaluation_identity, load_questions

    data = data_file(tmp_path)
    identity = evaluation_identity(load_questions(data).questions, 64, 1000)
    first, second = tmp_path / "p.jsonl", tmp_path / "p-against.jsonl"
    ours = identity | {"model": str(tiny_llava_dir), "adapter": None}
    common = ("--data", data, "--model", tiny_llava_dir, "--against", "builtin", "--out", first)
    PredictionsFile(first, ours).resume()
    assert isinstance(command(*common), AssertionError)  # reaches the loader
    PredictionsFile(second, ours).resume()
    assert f"{second} has predictions of another model" in str(command(*common))
    second.unlink()
    assert f"{first} has" in str(command(*common, "--max-new-tokens", 5))
    blocked = ("--data", data, "--out", first / "p.jsonl")
    assert "Cannot write to" in str(command(*blocked))


def test_the_public_names_are_the_functions() -> None:
    from finetune import evaluate, train

    assert evaluate is import_module("finetune.evaluation.evaluate").evaluate
    assert train is import_module("finetune.training.train").train


def test_a_bad_row_stops_an_evaluation(tiny_llava_dir: Path, tmp_path: Path) -> None:
    from finetune.evaluation.evaluate import evaluate

    data = tmp_path / "bad.json"
    data.write_text(json.dumps([{"id": "1", "image": "no.png", "conversations": []}]))
    with pytest.raises(DataError, match="row 1"):
        evaluate(tiny_llava_dir, data)


def test_predictions_for_changed_pictures_are_not_reused(
    tiny_llava_dir: Path, tmp_path: Path
) -> None:
    from finetune.evaluation.evaluate import evaluate

    data, out = data_file(tmp_path), tmp_path / "predictions.jsonl"
    options: dict[str, Any] = {"out": out, "max_new_tokens": 2, "losses": 0}
    evaluate(tiny_llava_dir, data, **options)
    evaluate(tiny_llava_dir, data, **options)  # reuses the predictions
    blank_one(tmp_path / "two.png")
    with pytest.raises(UsageError, match="another model or other data"):
        evaluate(tiny_llava_dir, data, **options)


def test_an_unwritable_file_is_reported(tmp_path: Path) -> None:
    from finetune.evaluation.predictions import PredictionsFile

    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"Cannot write to .*: there is a file where a folder"):
        PredictionsFile(tmp_path / "file" / "p.jsonl", {}).resume()
    kept = PredictionsFile(tmp_path / "p.jsonl", {})
    kept.resume()
    kept.path.unlink()
    kept.path.mkdir()
    with pytest.raises(UsageError, match="Cannot write to"):
        kept.append([prediction("1", True)])


def blank_one(path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (9, 9), "grey").save(path)


def test_a_picture_in_a_table_is_identified_by_content() -> None:
    from finetune.evaluation.questions import evaluation_identity

    class Cell:
        def __init__(self, content: bytes) -> None:
            self.content = content

        def read(self) -> bytes:
            return self.content

    def identity(content: bytes) -> dict[str, Any]:
        shown = PictureSource("image 1", "table#1.image.0", Cell(content))
        turns = (Turn("user", (shown, "What?")), Turn("assistant", ("it",)))
        return evaluation_identity(make_questions([Row("1", "t", 1, turns, (("it",),))]), 8, 0)

    assert identity(b"one") == identity(b"one") != identity(b"two")


def damaged(folder: Path) -> Path:
    """Write data whose second row has a truncated picture."""
    data = data_file(folder)
    path = folder / "two.png"
    path.write_bytes(path.read_bytes()[:-200])
    return data


def test_a_damaged_picture_is_reported_before_a_model_is_loaded(
    tmp_path: Path, no_model: None
) -> None:
    found = command("--data", damaged(tmp_path))
    assert isinstance(found, DataError)
    assert "1 problem in the data" in str(found)
    assert "data.json, row 2: two.png" in str(found)


def test_bad_rows_may_be_skipped(tiny_llava_dir: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from finetune.cli.evaluate import app

    data = damaged(tmp_path)
    data.write_bytes(b"\xef\xbb\xbf" + data.read_bytes())
    options = ["--max-new-tokens", "2", "--losses", "0", "--max-bad", "1", "--json"]
    common = ["eval", "--data", str(data), "--model", str(tiny_llava_dir)]
    shown = CliRunner().invoke(app, [*common, *options])
    assert json.loads(shown.stdout)["scores"]["questions"] == 4
    assert f"Note: {data}: The file begins with a byte-order mark" in shown.stderr
    assert "Skipped: " in shown.stderr
    assert "data.json, row 2" in shown.stderr


def test_a_picture_that_becomes_unreadable_is_reported_with_its_row(
    tiny: tuple[Any, Any, Any], tmp_path: Path
) -> None:
    from finetune.evaluation.evaluate import answer_questions
    from finetune.evaluation.questions import load_questions

    questions = load_questions(data_file(tmp_path)).questions
    (tmp_path / "two.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"data\.json, row 2: "):
        answer_questions(*tiny, questions)
