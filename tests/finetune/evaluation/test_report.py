"""The report and the model card are generated from a run's files."""

from __future__ import annotations

import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from finetune.data.read import PictureSource, Row, Turn
from finetune.evaluation.predictions import Prediction
from finetune.evaluation.questions import make_questions
from finetune.evaluation.report import (
    WorstAnswer,
    memorization_warning,
    save_watch_answers,
    worst_answers,
    write_report,
)
from tests.tiny import picture
from vqa_app.checkpoints.manifest import Base, Manifest, write_manifest
from vqa_app.pictures.picture import ImageLimits


class Page(HTMLParser):
    """The text of a page, and the addresses of its pictures and links."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.pictures, self.outside = "", [], []
        self.feed(html)

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "img":
            self.pictures.append(values["src"] or "")
        self.outside += [
            v for k, v in attrs if k in ("href", "src") and not (v or "").startswith("data:")
        ]


def prediction(name: str, answer: str, accuracy: float, loss: float = 1.0) -> Prediction:
    return Prediction(
        name,
        "d.json, row 1",
        ("p.png",),
        "what",
        "What is <b>it</b>?",
        ("red",),
        answer,
        accuracy,
        loss,
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = tmp_path / "my-run"
    directory.mkdir()
    config = {"data": ["train.json"], "lr": 0.001, "eval_data": []}
    write_manifest(
        directory,
        Manifest(
            "lora", Base("builtin", "abc123"), "p1", "d1", config=config, command="vqa-app finetune"
        ),
    )
    lines = [
        {"step": 10, "epoch": 0.5, "loss": 2.0, "learning_rate": 1e-3},
        {"step": 10, "eval_loss": 1.9, "eval_vqa_accuracy": 0.5, "eval_image_gain": 0.1},
        {"step": 20, "epoch": 1.0, "loss": 1.0, "learning_rate": 5e-4},
        {"step": 20, "eval_loss": 0.9, "eval_vqa_accuracy": 0.75, "eval_image_gain": 0.4},
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step, answer in ((10, "blue"), (20, "blue"), (30, "red")):
        save_watch_answers(directory, step, [("Which colour?", "red", answer, [picture(1)])])
    return directory


def test_the_report_is_one_self_contained_file(run: Path) -> None:
    worst = [WorstAnswer(prediction("1", "<script>alert(1)</script>", 0.0), (picture(2),))]
    write_report(run, worst)
    html = (run / "report.html").read_text()
    page = Page(html)
    assert page.outside == []  # nothing is loaded from elsewhere
    for text in (
        "75.00 %",
        "0.9000",
        "Which colour?",
        "step 10 to 20",
        "step 30",
        "vqa-app finetune",
    ):
        assert text in page.text, text
    assert "What is <b>it</b>?" in page.text
    assert "<script>" not in html
    assert len(page.pictures) == 4 + 1 + 1  # plots, watch, worst
    assert "eval_data" not in page.text  # unset options are omitted


def test_every_logged_curve_is_plotted(run: Path) -> None:
    write_report(run)
    plots = {path.name for path in (run / "plots").iterdir()}
    assert plots == {"loss.png", "accuracy.png", "image_gain.png", "learning_rate.png"}
    with Image.open(run / "plots" / "loss.png") as image:
        assert min(image.size) > 300
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 10


def test_plots_show_whole_steps_and_zero_accuracy() -> None:
    from finetune.evaluation.report import _draw

    (axes,) = _draw({"held-out": ([0, 1, 2], [0.0, 0.0, 1.0])}, "", "", in_percent=True).axes
    low, high = axes.get_ylim()
    assert low < 0
    assert high > 1
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_values_before_training_are_labelled(run: Path) -> None:
    before = {"step": 0, "eval_loss": 5.0, "eval_vqa_accuracy": 0.125}
    file = run / "metrics.jsonl"
    file.write_text(json.dumps(before) + "\n" + file.read_text())
    save_watch_answers(run, 0, [("Which colour?", "red", "a cat", [picture(1)])])
    write_report(run)
    text = Page((run / "report.html").read_text()).text
    assert "75.00 %" in text
    assert "12.50 % before training" in text
    assert text.index("before training\na cat") < text.index("step 10 to 20")
    assert "before training 12.50 %" in (run / "README.md").read_text()


def test_watch_answers_are_coloured_by_accuracy(run: Path) -> None:
    (run / "watch.jsonl").unlink()
    ten = ["red"] * 6 + ["crimson"] * 4
    for step, answer in ((1, "Crimson."), (2, "blue"), (3, "red")):
        answered = [("Which?", "red", answer, [picture(1)]), ("And?", "", "grey", [picture(2)])]
        save_watch_answers(run, step, answered, [ten, ()])
    save_watch_answers(run, 4, [("Which?", "red", "A red!", [picture(1)])])
    write_report(run)
    html = (run / "report.html").read_text()
    assert re.findall(r'<td class="(good|bad)">([^<]*)</td>', html) == [
        ("good", "Crimson."),
        ("bad", "blue"),
        ("good", "red"),
        ("good", "A red!"),
    ]
    assert "<td>grey</td>" in html  # the correct answer is unknown
    lines = [json.loads(line) for line in (run / "watch.jsonl").read_text().splitlines()]
    for line in lines:
        del line["accuracy"]  # as written by an earlier version
    (run / "watch.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report(run)
    assert '<td class="good">red</td>' in (run / "report.html").read_text()


def test_a_watched_picture_cut_by_a_full_disk_is_written_again(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = picture(7)

    def full(_: Image.Image, place: Path, *__: object) -> None:
        Path(place).write_bytes(b"\x89PNG")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        with pytest.raises(OSError, match="No space left"):
            save_watch_answers(run, 40, [("And here?", "", "red", [shown])])
    save_watch_answers(run, 40, [("And here?", "", "red", [shown])])
    with Image.open(run / "watch" / f"{shown.digest}.png") as image:
        assert image.size == shown.image.size


def test_the_number_and_source_of_held_out_questions_are_stated(run: Path) -> None:
    file = run / "metrics.jsonl"
    kept = file.read_text()
    for number, words in ((1, "1 held-out question"), (1234, "1,234 held-out questions")):
        final = {"step": 20, "final": True, "eval_vqa_accuracy": 1.0, "eval_loss": 0.5}
        file.write_text(kept + json.dumps(final | {"eval_questions": number}) + "\n")
        write_report(run)
        text = Page((run / "report.html").read_text()).text
        assert f"100.00 %VQA accuracy on {words}" in text
        card = (run / "README.md").read_text()
        assert f"| VQA accuracy on {words} | 100.00 % |" in card
        assert "rows held out of the training data" in card
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["config"]["eval_data"] = ["test.json"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    write_report(run)
    card = (run / "README.md").read_text()
    assert "separate data, test.json" in card
    assert "held out of the training data" not in card


def test_a_run_on_a_run_warns_about_held_out_rows_seen_earlier(run: Path) -> None:
    claim, warning = "whose pictures it was not trained on", "may include rows held out here"
    manifest = json.loads((run / "manifest.json").read_text())
    earlier = [{"name": "/home/ann/first", "data": ["/home/ann/a.json"], "data_hash": "d1"}]
    for added, sure in (([], True), ([{**earlier[0], "name": "b", "data_hash": "d2"}], False)):
        manifest["earlier"] = [*earlier, *added]  # the first held out the same rows
        (run / "manifest.json").write_text(json.dumps(manifest))
        write_report(run)
        for name in ("README.md", "report.html"):
            text = (run / name).read_text()
            assert (warning in text) == (not sure)
            assert sure or "(first on a.json; b on a.json)" in text
        assert (claim in (run / "README.md").read_text()) == sure


def test_held_out_rows_that_it_was_trained_on_are_stated(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["config"]["eval_data"] = ["train.json", "train.json", "test.json"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    metrics = (run / "metrics.jsonl").read_text()
    for leaks in (0, 1, 24):
        final = {"step": 20, "final": True, "eval_loss": 0.9, "eval_questions": 48, "leaks": leaks}
        (run / "metrics.jsonl").write_text(metrics + json.dumps(final) + "\n")
        write_report(run)
        for name in ("README.md", "report.html"):
            text = (run / name).read_text()
            assert ("better than on new rows" in text) == (leaks > 0)
            assert leaks != 24 or "show the pictures of, 24 held-out rows" in text
        card = (run / "README.md").read_text()
        assert ("separate data" in card) == (leaks == 0)
        assert "train.json, test.json, with" in card


def test_the_card_of_a_run_without_evaluation_says_so(run: Path) -> None:
    (run / "metrics.jsonl").write_text(json.dumps({"step": 10, "loss": 2.0}) + "\n")
    write_report(run)
    card = (run / "README.md").read_text()
    assert "It was not evaluated on held-out questions" in card
    assert "Measured on" not in card


def test_the_model_card_names_base_data_and_results(run: Path) -> None:
    write_report(run)
    card = (run / "README.md").read_text()
    for text in ("library_name: peft", "75.00 %", "train.json", "my-run"):
        assert text in card, text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("builtin", "the built-in model of vqa-app"),
        ("owner/name", "`owner/name`"),
        ("/home/ann/models/mine", "a model that is not on the hub, `mine`"),
    ],
)
def test_the_card_has_no_absolute_paths(run: Path, name: str, text: str) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["base"]["name"] = name
    manifest["config"] |= {"data": ["/home/ann/d/a.json@2"], "eval_data": ["C:\\d\\b.json"]}
    given = [
        "vqa-app",
        "finetune",
        "--data",
        "/home/ann/d/a.json",
        "--watch",
        "/home/ann/p.png: a/b?",
    ]
    manifest["command"] = shlex.join(given)
    (run / "manifest.json").write_text(json.dumps(manifest))
    write_report(run)
    card = (run / "README.md").read_text()
    assert ("base_model:" in card) == (name == "owner/name")  # the hub accepts only its own ids
    assert f"A LoRA adapter and a projector for {text}," in card
    assert "/home" not in card
    assert "C:" not in card
    assert "vqa-app finetune --data a.json --watch 'p.png: a/b?'" in card
    assert "Data: a.json@2 " in card
    assert "separate data, b.json" in card
    assert "a.json" in (run / "report.html").read_text()


def test_a_watched_photo_may_exceed_the_upload_limit(run: Path) -> None:
    photo = picture(size=(2700, 2700))
    save_watch_answers(run, 40, [("And here?", "", "red", [photo])])
    assert (run / "watch" / f"{photo.digest}.png").stat().st_size > ImageLimits().max_bytes
    write_report(run)
    assert "And here?" in (run / "report.html").read_text()


def test_a_run_without_logs_has_a_report(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    (run / "watch.jsonl").unlink()
    write_report(run)
    assert "Nothing was logged" in (run / "report.html").read_text()


def test_the_worst_answers_have_their_pictures() -> None:
    from io import BytesIO

    buffer = BytesIO()
    picture(3).image.save(buffer, "PNG")
    source = PictureSource.data(buffer.getvalue(), "three.png")
    rows = [
        Row(
            name,
            "d",
            1,
            (Turn("user", (source, "What?")), Turn("assistant", ("red",))),
            (("red",),),
        )
        for name in "abcd"
    ]
    predictions = [
        prediction("a", "red", 1.0),
        prediction("b", "blue", 0.0, loss=1.0),
        prediction("c", "green", 0.0, loss=3.0),
        prediction("d", "reddish", 0.3),
    ]
    found = worst_answers(predictions, make_questions(rows))
    assert [answer.prediction.id for answer in found] == ["c", "b", "d"]
    assert found[0].pictures == (picture(3),)
    assert [a.prediction.id for a in worst_answers(predictions, make_questions(rows), 1)] == ["c"]
    repeated = [prediction(name, "blue", 0.0, loss=2.0) for name in "bc"]
    repeated.append(prediction("a", "green", 0.0))
    found = worst_answers(repeated, make_questions(rows), 2)
    assert [answer.prediction.id for answer in found] == ["b", "a"], "each question once"


def _evaluated(run: Path, losses: list[float], accuracies: list[float], questions: int) -> str:
    """Write a log with these evaluations, one every ten steps, and return the warning."""
    lines = [
        {"step": 10 * number, "eval_loss": loss, "eval_vqa_accuracy": accuracy}
        for number, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True))
    ]
    final = {**lines[-1], "final": True, "eval_questions": questions}
    (run / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in [*lines, final]))
    return memorization_warning(run)


def test_learning_by_heart_is_reported_with_what_to_change(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["config"] |= {"epochs": 10.0, "rank": 48, "stage": "lora"}
    (run / "manifest.json").write_text(json.dumps(manifest))
    losses, accuracies = [0.9, 0.5, 0.6, 0.8, 1.0], [0.4, 0.59, 0.6, 0.58, 0.594]
    warning = _evaluated(run, losses, accuracies, 704)
    for words in (
        "learning its training rows by heart",
        "after step 10 the held-out loss rose from 0.500 to 1.000",
        "59.0 % then, 59.4 % at the end",
        "--epochs 2.5 instead of 10",
        "--rank 24 instead of 48",
        "more rows",
    ):
        assert words in warning, words
    write_report(run)
    assert warning in Page((run / "report.html").read_text()).text
    assert warning in (run / "README.md").read_text()


@pytest.mark.parametrize(
    ("losses", "accuracies", "questions", "warns"),
    [
        ([0.9, 0.5, 0.6, 1.0], [0.4, 0.59, 0.6, 0.59], 704, True),
        ([0.9, 0.5, 0.6, 1.0], [0.4, 0.59, 0.7, 0.75], 704, False),  # still getting better
        ([0.9, 0.5, 0.6, 1.0], [0.4, 0.59, 0.6, 0.62], 20, True),  # within the noise of 20
        ([0.9, 0.5, 0.4, 0.3], [0.4, 0.5, 0.5, 0.5], 704, False),
        ([0.9, 0.50, 0.51, 0.52], [0.4, 0.5, 0.5, 0.5], 704, False),
        ([0.004, 0.001, 0.002, 0.004], [1.0, 1.0, 1.0, 1.0], 704, False),
        ([0.1, 0.5, 1.0], [0.9, 0.9, 0.9], 704, False),  # never fell: another fault
        ([0.5, 1.0], [0.5, 0.5], 704, False),
    ],
)
def test_a_run_learns_by_heart_if_its_loss_rises_and_its_accuracy_does_not(
    run: Path, losses: list[float], accuracies: list[float], questions: int, warns: bool
) -> None:
    assert bool(_evaluated(run, losses, accuracies, questions)) == warns


def test_an_accuracy_stands_beside_what_one_gets_without_looking(run: Path) -> None:
    final = {
        "step": 20,
        "final": True,
        "eval_vqa_accuracy": 0.594,
        "eval_loss": 0.5,
        "eval_questions": 704,
        "baselines": {
            "answer": "no <b>|",
            "always": 0.63,
            "per_type": 0.65,
            "types": {"is it": 0.65},
            "source": "the training rows",
        },
        "blind": {"questions": 200, "accuracy": 0.5, "with_pictures": 0.6, "seconds": 3.21},
    }
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(final) + "\n")
    write_report(run)
    text = " ".join(Page((run / "report.html").read_text()).text.split())
    for words in (
        "63.00 %without looking: always “no <b>|”",
        "65.00 % with the most frequent answer to each type of question (counted in the training",
        "50.00 %the same model with grey pictures, on 200 of the questions; 60.00 % on these with",
        "(measured in 3.2 s)",
    ):
        assert words in text, words
    card = (run / "README.md").read_text()
    assert '| without looking at the pictures: always "no <b>\\|" | 63.00 % |' in card
    assert "on 200 of the questions | 50.00 %; with the pictures 60.00 % |" in card
