"""The output of check-data and show-sample, and the progress display."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.cli.inspect_data import check_data, show_sample
from finetune.config import FinetuneConfig
from finetune.progress import Progress, ProgressDisplay, format_duration, pluralize
from tests.fake_hub import serve
from tests.finetune.runs.test_checkpoint import saved
from tests.finetune.training_data import write_data
from vqa_app.checkpoints import source
from vqa_app.errors import DataError, ModelError, UsageError


def options(data: Path, model: Path) -> FinetuneConfig:
    return FinetuneConfig(data=(str(data),), model=str(model), workers=1)


def test_check_data_prints_counts_and_every_problem(tiny_llava_dir: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path)
    stream = io.StringIO()
    check_data(options(data, tiny_llava_dir), stream)
    assert "8 rows, 14 answers" in stream.getvalue()
    assert "No problems." in stream.getvalue()
    rows = json.loads(data.read_text())
    rows[4]["image"] = "gone.png"
    data.write_text(json.dumps(rows))
    stream = io.StringIO()
    with pytest.raises(DataError, match="1 problem"):
        check_data(options(data, tiny_llava_dir), stream)
    assert f"{data}, row 5: There is no picture gone.png" in stream.getvalue()
    check_data(options(data, tiny_llava_dir).replace(max_bad=1), io.StringIO())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_few_of_many_similar_problems(
    tiny_llava_dir: Path, tmp_path: Path
) -> None:
    data = write_data(tmp_path)
    rows = json.loads(data.read_text())
    bad = {**rows[1], "conversations": []}
    gone = [{**rows[1], "image": f"gone/missing-{number}.png"} for number in range(30)]
    data.write_text(json.dumps([rows[0], bad, *gone]))
    shown = {}
    for stream in (Terminal(), io.StringIO()):
        with pytest.raises(DataError, match="31 problems"):
            check_data(options(data, tiny_llava_dir), stream)
        lines = stream.getvalue().splitlines()
        shown[type(stream)] = [line for line in lines if line.startswith(str(data))]
    assert len(shown[io.StringIO]) == 31
    assert len(shown[Terminal]) == 6
    assert "gone/missing-0.png" in shown[Terminal][0]
    assert "conversation" in shown[Terminal][-1]


def test_max_bad_does_not_allow_a_broken_file(tiny_llava_dir: Path, tmp_path: Path) -> None:
    data, broken = write_data(tmp_path), tmp_path / "broken.json"
    broken.write_text("[{")
    config = options(data, tiny_llava_dir).replace(data=(str(data), str(broken)), max_bad=9)
    with pytest.raises(DataError, match="1 problem") as stopped:
        check_data(config, io.StringIO())
    assert stopped.value.hint.startswith("Fix the file")


def test_leaking_rows_are_counted(tiny_llava_dir: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path)
    stream = io.StringIO()
    check_data(options(data, tiny_llava_dir).replace(eval_data=(str(data),)), stream)
    assert "Held-out rows that repeat a training row or show its picture: 8" in stream.getvalue()


def test_show_sample_marks_exactly_the_trained_tokens(tiny_llava_dir: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path)
    stream = io.StringIO()
    show_sample(options(data, tiny_llava_dir), "2", stream)
    shown = stream.getvalue()
    marked = "".join(part.split("⟧")[0] for part in shown.split("⟦")[1:] if "green" not in part)
    assert marked == "blue<|im_end|>no<|im_end|>no<|im_end|>"
    assert "⟨16 image tokens⟩" in shown
    assert "row 2" in shown
    assert "32×32" in shown
    with pytest.raises(DataError, match="no row 9; the rows are 1 to 8"):
        show_sample(options(data, tiny_llava_dir), "9", stream)


def shown(model: Path, which: str | None, *data: Path) -> str:
    stream = io.StringIO()
    config = options(data[0], model).replace(data=tuple(map(str, data)))
    show_sample(config, which, stream)
    return stream.getvalue()


def test_a_row_is_found_by_the_number_in_problems(tiny_llava_dir: Path, tmp_path: Path) -> None:
    write_data(tmp_path, pictures=2)
    good = '{"image": "0.png", "question": "Which colour?", "answer": "red"}'
    bad = '{"image": "gone.png", "question": "Which colour?", "answer": "red"}'
    (tmp_path / "a.jsonl").write_text(f"{bad}\n\n{good}\n")
    (tmp_path / "b.csv").write_text("image,question,answer\n1.png,Which colour?,blue\n")
    (tmp_path / "c.jsonl").write_text(f"{good}\n{good}\n{good}\n")
    first, second, third = (tmp_path / name for name in ("a.jsonl", "b.csv", "c.jsonl"))
    for which in (None, "3"):
        assert "a.jsonl, row 3," in shown(tiny_llava_dir, which, first, second)
    assert "b.csv, row 2," in shown(tiny_llava_dir, "2", first, second)
    assert "c.jsonl, row 3," in shown(tiny_llava_dir, "c.jsonl:3", first, third)
    for which, files, message in (
        ("1", (first,), r"a\.jsonl, row 1: .*gone\.png"),
        ("3", (first, third), "Several files have a row 3"),
        ("c.jsonl:4", (first, third), "no row c.jsonl:4; the rows are 1 to 3"),
        ("two", (first,), "--row is 'two'"),
    ):
        with pytest.raises((DataError, UsageError), match=message):
            shown(tiny_llava_dir, which, *files)


def test_a_damaged_picture_is_reported_with_its_row(tiny_llava_dir: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path, pictures=2)
    (tmp_path / "1.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"data\.json, row 2: 1\.png"):
        shown(tiny_llava_dir, "2", data)


def test_one_item_is_singular() -> None:
    texts = [pluralize(number, "bad row") for number in (0, 1, 2000)]
    assert texts == ["0 bad rows", "1 bad row", "2,000 bad rows"]


@pytest.mark.parametrize("stage", ["projector", "lora"])
def test_a_run_tokenises_rows_as_its_base_does(
    stage: str, tiny_llava_dir: Path, tmp_path: Path
) -> None:
    run = saved(tiny_llava_dir, stage, tmp_path)
    data = write_data(tmp_path)
    for shown in (check_data, lambda config, stream: show_sample(config, "2", stream)):
        streams = io.StringIO(), io.StringIO()
        shown(options(data, tiny_llava_dir), streams[0])
        shown(options(data, run), streams[1])
        assert streams[0].getvalue() == streams[1].getvalue() != ""


def test_inspecting_data_downloads_no_weights(
    tiny_llava_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_data(tmp_path)
    with serve(monkeypatch, tmp_path / "cache") as hub:
        hub.repositories["someone/model"] = tiny_llava_dir
        hub.sizes["model.safetensors"] = 10**18  # need not fit into memory either
        stream = io.StringIO()
        check_data(options(data, tiny_llava_dir).replace(model="someone/model"), stream)
        assert "8 rows" in stream.getvalue()
        assert hub.downloads
        assert "model.safetensors" not in hub.downloads
    again = source.find("someone/model", offline=True, weights=False)
    assert (again.directory / "config.json").is_file()
    with pytest.raises(ModelError, match="not in the local cache"):
        source.find("someone/model", offline=True)


def test_a_terminal_shows_the_picture(tiny_llava_dir: Path, tmp_path: Path) -> None:
    stream = Terminal()
    show_sample(options(write_data(tmp_path), tiny_llava_dir), "2", stream)
    assert stream.getvalue().count("▀") == 48 * 24


def test_progress_without_a_terminal_is_a_few_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("finetune.progress._LINE_SECONDS", 1e9)
    stream = io.StringIO()
    with ProgressDisplay(stream) as display:
        for step in range(1, 51):
            display(Progress("training", step, 50, loss=1 / step, evaluation={"vqa_accuracy": 0.5}))
        display(Progress("saving", message="Saved."))
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("training  1/50  loss 1.0000  accuracy 50.0 %")
    assert lines[-2].startswith("training  50/50")
    assert lines[-1] == "Saved."
    assert len(lines) == 3
    assert "\x1b" not in stream.getvalue()


def test_durations_are_formatted_as_a_clock() -> None:
    assert (format_duration(59.6), format_duration(61), format_duration(3700)) == (
        "1:00",
        "1:01",
        "1:01:40",
    )


def test_data_without_rows_is_refused(tiny_llava_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text("[]")
    with pytest.raises(DataError, match="no rows"):
        check_data(options(tmp_path / "data.json", tiny_llava_dir), io.StringIO())


def test_show_sample_shows_patches_and_separate_questions(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """Qwen-VL reads patches, and trains each question in a separate sequence."""
    data = write_data(tmp_path)
    stream = io.StringIO()
    show_sample(options(data, tiny_checkpoint("qwen2-vl")), "2", stream)
    assert stream.getvalue().count("Preprocessed: patches") == 1
    assert "independent of the others" not in stream.getvalue()
    assert stream.getvalue().count("trained (⟦green⟧)") == 3
