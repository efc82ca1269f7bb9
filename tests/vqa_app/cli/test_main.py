"""The shell: what goes where, how errors leave, and how fast help comes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from tests.fake_engine import FakeEngine
from tests.waiting import PATIENCE
from vqa_app import __version__
from vqa_app.cli import ask, doctor
from vqa_app.cli.main import _COMMANDS, app
from vqa_app.engine.protocol import GenerationOptions
from vqa_app.errors import ModelError

Run = Callable[..., Result]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    """The engine that `ask` gets, whatever model it asks for; one that was closed is renewed."""
    fake = FakeEngine()

    def open_engine(choice: object, console: object) -> FakeEngine:
        if not fake.closed:
            return fake
        another = FakeEngine()
        another.asked, another.error, fake.error = fake.asked, fake.error, None
        return another

    monkeypatch.setattr(ask, "open_engine", open_engine)
    yield fake
    fake.close()


@pytest.fixture
def run() -> Run:
    runner = CliRunner()
    return lambda *words, **options: runner.invoke(app, list(words), **options)


@pytest.fixture
def cat(tmp_path: Path) -> str:
    path = tmp_path / "cat.png"
    Image.new("RGB", (20, 10), (200, 30, 30)).save(path)
    return str(path)


@pytest.fixture
def mouse(tmp_path: Path) -> str:
    path = tmp_path / "mouse.png"
    Image.new("RGB", (10, 20), (90, 90, 90)).save(path)
    return str(path)


# Asking once


def test_the_answer_goes_to_stdout_alone(run: Run, engine: FakeEngine, cat: str) -> None:
    result = run("ask", cat, "What is it?")
    assert result.exit_code == 0
    assert result.stdout == "You asked 'What is it?' about one picture.\n"
    assert result.stderr == ""
    assert engine.closed


def test_several_pictures_in_one_question(
    run: Run, engine: FakeEngine, cat: str, mouse: str
) -> None:
    result = run("ask", cat, mouse, cat, "Which is bigger?")
    assert "about 3 pictures" in result.stdout
    pictures = engine.asked[0][0].pictures
    assert [picture.name for picture in pictures] == ["cat.png", "mouse.png", "cat.png"]


def test_a_picture_from_stdin(run: Run, engine: FakeEngine, cat: str) -> None:
    result = run("ask", "-", "What is it?", input=Path(cat).read_bytes())
    assert result.exit_code == 0, result.stderr
    assert engine.asked[0][0].pictures[0].image.size == (20, 10)


def test_a_question_without_a_picture(run: Run, engine: FakeEngine) -> None:
    assert "no picture" in run("ask", "What can you do?").stdout


@pytest.mark.parametrize("question", ["a" * 300, "What " * 90, "What\0is it?"])
def test_a_question_of_any_length_is_asked(
    run: Run, engine: FakeEngine, cat: str, question: str
) -> None:
    """Longer than a file's name may be, it is looked for among the files none the less."""
    assert run("ask", cat, question).exit_code == 0
    assert engine.asked[0][0].messages[-1].text == question


def test_what_was_changed_is_told_on_stderr(run: Run, engine: FakeEngine, tmp_path: Path) -> None:
    path = tmp_path / "see-through.png"
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(path)
    result = run("ask", str(path), "What is it?")
    assert "see-through.png: transparency laid on white" in result.stderr
    assert "transparency" not in result.stdout


def test_every_option_reaches_the_engine(run: Run, engine: FakeEngine, cat: str) -> None:
    words = "--max-new-tokens 5 --temperature 0.5 --top-p 0.9 --seed 7 --system Briefly"
    assert run("ask", *words.split(), cat, "What is it?").exit_code == 0
    assert engine.asked[0][1] == GenerationOptions(
        max_new_tokens=5, temperature=0.5, top_p=0.9, seed=7, system="Briefly"
    )


def test_every_model_option_reaches_the_loader(
    run: Run, engine: FakeEngine, cat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = []

    def open_engine(choice: ask.ModelChoice, console: object) -> FakeEngine:
        chosen.append(choice)
        return engine

    monkeypatch.setattr(ask, "open_engine", open_engine)
    words = "--model a --adapter b --quantize 4bit --device cpu --dtype float32 --revision c"
    run("ask", *words.split(), "--offline", cat, "What is it?")
    assert chosen == [ask.ModelChoice("a", "b", "4bit", "cpu", "float32", "c", True)]


def test_a_cut_answer_is_told(run: Run, engine: FakeEngine, cat: str) -> None:
    result = run("ask", "--max-new-tokens", "2", cat, "What is it?")
    assert result.stdout == "You asked\n"
    assert "cut off" in result.stderr


def test_json(run: Run, engine: FakeEngine, cat: str) -> None:
    result = run("ask", "--json", cat, "What is it?")
    row = json.loads(result.stdout)
    assert row["question"] == "What is it?"
    assert row["answer"] == "You asked 'What is it?' about one picture."
    assert row["pictures"][0]["name"] == "cat.png"
    assert (row["pictures"][0]["width"], row["pictures"][0]["height"]) == (20, 10)
    assert row["abstained"] is False
    assert row["finish_reason"] == "stop"
    assert row["confidence"] == 0.75
    assert row["model"] == "fake"


# Choices, abstaining, explaining


def test_choices_pick_the_likeliest(run: Run, engine: FakeEngine, cat: str) -> None:
    assert run("ask", "--choices", "yes, no", cat, "Is it red?").stdout == "yes\n"
    row = json.loads(run("ask", "--choices", "yes,no", "--json", cat, "Is it red?").stdout)
    assert row["answer"] == "yes"
    assert row["choices"] == {"yes": pytest.approx(2 / 3, 1e-3), "no": pytest.approx(1 / 3, 1e-3)}


@pytest.mark.parametrize("choices", ["yes", "", "yes,yes", " , "])
def test_one_choice_is_none(run: Run, engine: FakeEngine, cat: str, choices: str) -> None:
    result = run("ask", "--choices", choices, cat, "Is it red?")
    assert result.exit_code == 2
    assert "two or more" in result.stderr


def test_abstaining_below_the_threshold(run: Run, engine: FakeEngine, cat: str) -> None:
    sure = run("ask", "--abstain", "0.7", cat, "What is it?")
    unsure = run("ask", "--abstain", "0.8", cat, "What is it?")
    assert "one picture" in sure.stdout
    assert unsure.stdout == "I am not sure.\n"
    assert unsure.exit_code == 0
    row = json.loads(run("ask", "--abstain", "0.8", "--json", cat, "What is it?").stdout)
    assert row["abstained"] is True
    assert row["answer"] == "I am not sure."
    assert "one picture" in row["would_have_said"]


def test_abstaining_from_a_choice(run: Run, engine: FakeEngine, cat: str) -> None:
    words = ("ask", "--choices", "a,b,c", cat, "Which?", "--abstain")
    assert run(*words, "0.5").stdout == "a\n"
    assert run(*words, "0.6").stdout == "I am not sure.\n"


def test_abstain_is_a_probability(run: Run, engine: FakeEngine, cat: str) -> None:
    for value in ("80", "-0.1", "nan"):
        assert run("ask", "--abstain", value, cat, "What?").exit_code == 2


def test_explain_writes_an_overlay(run: Run, engine: FakeEngine, cat: str, tmp_path: Path) -> None:
    target = tmp_path / "map.png"
    result = run("ask", "--explain", str(target), cat, "What is it?")
    assert result.exit_code == 0, result.stderr
    assert str(target) in result.stderr.replace("\n", "")
    with Image.open(target) as drawn:
        assert drawn.size == (512, 256)
        assert drawn.getpixel((5, 5)) != drawn.getpixel((500, 250))


def test_explain_writes_one_overlay_a_picture(
    run: Run, engine: FakeEngine, cat: str, mouse: str, tmp_path: Path
) -> None:
    run("ask", "--explain", str(tmp_path / "map.png"), cat, mouse, "Which?")
    assert {path.name for path in tmp_path.glob("map*")} == {"map-1.png", "map-2.png"}


def test_explain_says_before_answering_where_a_model_cannot(
    run: Run, monkeypatch: pytest.MonkeyPatch, cat: str, tmp_path: Path
) -> None:
    fake = FakeEngine(attention_maps=False)
    monkeypatch.setattr(ask, "open_engine", lambda choice, console: fake)
    result = run("ask", "--explain", str(tmp_path / "map.png"), cat, "What is it?")
    assert result.exit_code == 4
    assert result.stdout == ""
    assert "does not show where it looked" in result.stderr


def test_explain_spares_what_it_cannot_or_must_not_write(
    run: Run, engine: FakeEngine, cat: str, mouse: str, tmp_path: Path
) -> None:
    (tmp_path / "folder.png").mkdir()
    result = run("ask", "--explain", f"{tmp_path}/folder.png", cat, "What is it?")
    assert (result.exit_code, result.stdout) == (2, "")  # told before there is an answer
    assert "that is a folder" in result.stderr
    (tmp_path / "map-2.png").symlink_to(mouse)
    result = run("ask", "--explain", f"{tmp_path}/map.png", cat, mouse, "Same?")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "map-2.png would overwrite the picture itself" in result.stderr


def test_a_map_that_cannot_be_written_is_no_bug(
    run: Run, engine: FakeEngine, cat: str, tmp_path: Path
) -> None:
    (tmp_path / "map.png").symlink_to("no/such/folder.png")
    result = run("ask", "--explain", f"{tmp_path}/map.png", cat, "What is it?")
    assert result.exit_code == 2
    assert "map.png cannot be written: " in result.stderr


# Errors: two lines, a code, no traceback


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["gone.png", "What?"], 3, "There is no file gone.png"),
        (["gone.png"], 2, "There is no question"),
        ([], 2, "There is no question"),
        (["CAT", ""], 2, "The question is empty"),
        (["FOLDER"], 2, "--each FOLDER"),
        (["FOLDER/"], 2, "--each FOLDER/"),
        (["CAT", "FOLDER"], 2, "--each FOLDER"),
        (["FOLDER", "What is it?"], 2, "--each FOLDER"),
        (["What is it?", "CAT"], 2, "Put the question last, in quotes"),
        (["CAT", "What", "is", "it?"], 2, "needs quotes"),
        (["--each", "CAT", "What", "is", "it?"], 2, "needs quotes"),
        (["nofile", "What is it?"], 3, "There is no file nofile"),
        (["LONG", "What is it?"], 3, "could not be read"),
        (["CAT", "--explain", "LONG/map.png", "What?"], 2, "no folder"),
        (["--each", "CAT", "--out", "LONG/a.jsonl", "What?"], 2, "no folder"),
        (["CAT", "CAT"], 2, "There is no question"),
        (["-", "-", "What?"], 2, "stdin holds only one"),
        (["ftp://host/cat.png", "What?"], 3, "not fetched by ftp"),
        (["--explain", "no/such/map.png", "CAT", "What?"], 2, "no folder"),
        (["--explain", "map.txt", "CAT", "What?"], 2, "not a picture's name"),
        (["--explain", "CAT", "CAT", "What?"], 2, "would overwrite the picture itself"),
        (["--seed", str(1 << 70), "CAT", "What?"], 2, "seed is 1180591620717411303424"),
        (["--explain", "map.png", "What?"], 2, "needs a picture"),
        (["--out", "a.jsonl", "CAT", "What?"], 2, "belongs to --each"),
        (["--each", "CAT"], 2, "needs a question"),
        (["--each", "*.none", "What?"], 2, "No file is called"),
        (["--each", "a.png", "CAT", "What?"], 2, "Quote the pattern"),
        (["--max-megapixels", "0.0001", "CAT", "What?"], 3, "the limit is"),
        (["--max-file-mb", "0.00001", "CAT", "What?"], 3, "is larger than"),
        (["--max-file-mb", "9e9", "CAT", "What?"], 2, "cannot be limited to 9e+09 MB"),
        (["--max-megapixels", "nan", "CAT", "What?"], 2, "cannot be limited to nan megapixels"),
        (["--temperature", "-1", "CAT", "What?"], 2, "temperature is -1"),
        (["--max-new-tokens", "0", "CAT", "What?"], 2, "max_new_tokens is 0"),
    ],
)
def test_a_wrong_call_says_what_and_how(
    run: Run, engine: FakeEngine, cat: str, words: list[str], code: int, said: str
) -> None:
    names = {"CAT": cat, "FOLDER": str(Path(cat).parent), "FOLDER/": f"{Path(cat).parent}/"}
    words = [word.replace("LONG", "x" * 300) for word in words]
    result = run("ask", *[names.get(word, word) for word in words])
    assert result.exit_code == code
    assert said.replace("FOLDER", names["FOLDER"]) in result.stderr
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.strip().splitlines()) == 2
    assert result.stdout == ""
    assert not engine.asked


@pytest.mark.parametrize(
    ("environment", "red"),
    [
        ({"TERM": "xterm"}, True),
        ({"NO_COLOR": "1", "TERM": "xterm"}, False),
        ({"TERM": "dumb"}, False),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_errors_are_red_on_terminals_that_want_it(environment: dict[str, str], red: bool) -> None:
    import pty

    ours, theirs = pty.openpty()
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "TERM")}
    code = (
        "from vqa_app.cli.main import report\nfrom vqa_app.errors import VqaError\n"
        "report(VqaError('No [b]file[/b].', 'Hint.'))"
    )
    subprocess.run(
        [sys.executable, "-c", code], stderr=theirs, env=kept | environment, timeout=PATIENCE
    )
    os.close(theirs)
    shown = os.read(ours, 4096)
    os.close(ours)
    assert b"No [b]file[/b].\r\n" in shown
    assert (b"\x1b[31mError:" in shown) == red


def test_unknown_options_are_wrong_usage(run: Run) -> None:
    assert run("ask", "--no-such-option").exit_code == 2
    assert run("ask", "--max-file-mb", "inf", "What?").exit_code == 2
    assert run("no-such-command").exit_code == 2


@pytest.mark.parametrize("command", ["finetune", "check-data", "show-sample"])
def test_commands_on_data_stay_offline_where_asked(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("finetune.cli.train.stay_offline", lambda: asked.append(command))
    words = (command, "--data", str(tmp_path / "gone.json"))
    assert run(*words).exit_code == run(*words, "--offline").exit_code != 0
    assert asked == [command]


def test_a_tilde_behind_an_equals_sign_is_the_home_folder(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    given: list[Path] = []
    monkeypatch.setattr("finetune.runs.merge.merge", lambda _run, out, dtype: given.append(out))
    run("merge", "here", "--out=~/there")
    assert given == [tmp_path / "there"]


def test_choices_of_finetune_are_checked(run: Run) -> None:
    assert run("finetune", "--stage", "loro").exit_code == 2
    assert "projector|lora|qlora|full" in run("finetune", "--help").stdout
    said = run("ask", "--quantize", "3bit", "What?").stderr
    assert "Invalid value for '--quantize': '3bit' is not one of" in said


@pytest.mark.parametrize(
    ("words", "code"), [(["verify", "nosuch"], 4), (["merge", "nosuch", "--out", "x"], 2)]
)
def test_a_run_that_is_not_there_is_told_as_such(run: Run, words: list[str], code: int) -> None:
    result = run(*words)
    assert result.exit_code == code
    assert "There is no folder nosuch." in result.stderr


def test_an_error_of_the_model_has_its_code(run: Run, engine: FakeEngine, cat: str) -> None:
    engine.error = ModelError("It broke.", "Fix it.")
    result = run("ask", cat, "What is it?")
    assert result.exit_code == 4
    assert result.stderr == "Error: It broke.\nFix it.\n"
    assert engine.closed


def test_a_bug_shows_no_traceback_unless_asked(run: Run, engine: FakeEngine, cat: str) -> None:
    engine.error = RuntimeError("inner matters")
    result = run("ask", cat, "What is it?")
    assert result.exit_code == 1
    assert "RuntimeError: inner matters" in result.stderr
    assert "Traceback" not in result.stderr
    engine.error = RuntimeError("inner matters")
    assert isinstance(run("--debug", "ask", cat, "What?").exception, RuntimeError)


def test_a_full_memory_is_no_bug(run: Run, engine: FakeEngine, cat: str) -> None:
    engine.error = RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB)")
    result = run("ask", cat, "What is it?")
    assert result.exit_code == 4
    assert result.stderr.startswith("Error: There is not enough memory")
    assert "bug" not in result.stderr


def test_interruption_has_its_code(run: Run, engine: FakeEngine, cat: str) -> None:
    engine.error = KeyboardInterrupt()
    result = run("ask", cat, "What is it?")
    assert result.exit_code == 130
    assert engine.closed


# Many pictures


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (8, 8), (50 * number, 0, 0)).save(folder / f"{number}.png")
    return folder


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_each_writes_a_line_a_picture(run: Run, engine: FakeEngine, photos: Path) -> None:
    out = photos / "answers.jsonl"
    result = run("ask", "--each", f"{photos}/*.png", "What?", "--out", str(out))
    assert result.exit_code == 0, result.stderr
    assert [row["picture"] for row in rows(out)] == [f"{photos}/{n}.png" for n in range(4)]
    assert all(row["answer"] == "You asked 'What?' about one picture." for row in rows(out))
    assert "4 answered" in result.stderr


def test_each_without_out_prints_json_lines(run: Run, engine: FakeEngine, photos: Path) -> None:
    result = run("ask", "--each", str(photos), "What?")
    assert len([json.loads(line) for line in result.stdout.splitlines()]) == 4


def test_each_of_a_folder_takes_its_pictures(run: Run, engine: FakeEngine, photos: Path) -> None:
    """Not what else lies there, such as the answers of the time before."""
    (photos / "notes.txt").write_text("Bring milk.")
    (photos / "0.png").rename(photos / "0.PNG")
    command = ("ask", "--each", str(photos), "What?", "--out", str(photos / "a.jsonl"))
    assert "4 answered" in run(*command).stderr
    again = run(*command)
    assert again.exit_code == 0
    assert "4 of 4 are answered already" in again.stderr
    result = run("ask", "--each", str(photos / "*.txt"), "What?")
    assert result.exit_code == 3
    assert "notes.txt" in result.stderr
    for picture in photos.glob("*.[pP]*"):
        picture.unlink()
    assert "No picture is called" in run(*command).stderr


def test_each_takes_names_with_brackets(run: Run, engine: FakeEngine, tmp_path: Path) -> None:
    folder = tmp_path / "photos [old]"
    folder.mkdir()
    for name in ("a[1].png", "a1.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    inside = str(folder / "a[1].png")
    for each, found in (
        (inside, [inside]),
        (str(folder), sorted([str(folder / "a1.png"), inside])),
    ):
        result = run("ask", "--each", each, "What?")
        assert result.exit_code == 0, result.stderr
        assert [json.loads(line)["picture"] for line in result.stdout.splitlines()] == found


def test_each_resumes_where_it_stopped(run: Run, engine: FakeEngine, photos: Path) -> None:
    out = photos / "answers.jsonl"
    command = ("ask", "--each", f"{photos}/*.png", "What?", "--out", str(out))
    run(*command)
    lines = out.read_text("utf-8").splitlines(keepends=True)
    out.write_text("".join(lines[:2]) + lines[2][:20], "utf-8")  # killed in the third line
    engine.asked.clear()
    result = run(*command)
    assert "2 of 4 are answered already" in result.stderr
    assert len(engine.asked) == 2
    assert sorted(str(row["picture"]) for row in rows(out)) == [
        f"{photos}/{n}.png" for n in range(4)
    ]


def test_nothing_left_loads_no_model(
    run: Run, engine: FakeEngine, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("ask", "--each", f"{photos}/*.png", "What?", "--out", str(photos / "a.jsonl"))
    run(*command)
    monkeypatch.setattr(ask, "open_engine", lambda *_: pytest.fail("a model was loaded"))
    assert run(*command).exit_code == 0


def test_limits_of_pictures_hold_for_each_and_may_come_from_the_environment(
    run: Run, engine: FakeEngine, photos: Path
) -> None:
    limited = {"VQA_MAX_MEGAPIXELS": "0.00005"}
    result = run("ask", "--each", str(photos / "0.png"), "What?", env=limited)
    assert result.exit_code == 3
    assert "the limit is" in result.stderr
    assert not engine.asked


def test_another_question_is_asked_anew(run: Run, engine: FakeEngine, photos: Path) -> None:
    command = ("ask", "--each", f"{photos}/*.png", "--out", str(photos / "a.jsonl"))
    run(*command, "What?")
    run(*command, "Why?", "--choices", "a,b")
    run(*command, "Why?")
    assert len(rows(photos / "a.jsonl")) == 12


@pytest.mark.parametrize(
    "other",
    [
        "--model other",
        "--adapter x",
        "--quantize 4bit",
        "--system Briefly",
        "--temperature 1",
        "--abstain 1",
        "--max-new-tokens 5",
    ],
)
def test_another_model_or_option_is_asked_anew_and_told(
    run: Run, engine: FakeEngine, photos: Path, other: str
) -> None:
    out = photos / "a.jsonl"
    command = ("ask", "--each", f"{photos}/*.png", "What?", "--out", str(out))
    assert run(*command).exit_code == 0
    result = run(*command, *other.split())
    assert "answered already" not in result.stderr
    assert f"{out} also holds other answers to this question (4), of another model" in result.stderr
    assert len(out.read_text().splitlines()) == 8
    assert "4 of 4 are answered already." in run(*command, *other.split()).stderr
    assert "4 of 4 are answered already." in run(*command).stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are Unicode")
def test_file_names_that_are_no_utf_8_are_answered_and_found_again(
    run: Run, engine: FakeEngine, tmp_path: Path
) -> None:
    name = os.fsdecode(b"\xff\xfe.png")
    Image.new("RGB", (3, 3)).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / name)
    command = ("ask", "--each", f"{tmp_path}/*.png", "What?")
    to_file = (*command, "--out", str(tmp_path / "a.jsonl"))
    assert run(*to_file).exit_code == 0
    assert "1 of 1 are answered already." in run(*to_file).stderr
    assert json.loads(run(*command).stdout)["picture"] == f"{tmp_path}/{name}"


def test_a_bad_file_does_not_stop_the_run(run: Run, engine: FakeEngine, photos: Path) -> None:
    (photos / "1.png").write_bytes(b"not a picture")
    out = photos / "a.jsonl"
    command = ("ask", "--each", f"{photos}/*.png", "What?", "--out", str(out))
    result = run(*command)
    assert result.exit_code == 3
    assert len(rows(out)) == 3
    assert "1 could not be used" in result.stderr
    assert "a text file" in result.stderr
    Image.new("RGB", (8, 8)).save(photos / "1.png")
    assert run(*command).exit_code == 0
    assert len(rows(out)) == 4


def test_out_that_is_something_else_is_left_alone(
    run: Run, engine: FakeEngine, photos: Path
) -> None:
    out = photos / "notes.txt"
    out.write_text("dear diary\nno newline at the end", "utf-8")
    result = run("ask", "--each", f"{photos}/*.png", "What?", "--out", str(out))
    assert result.exit_code == 2
    assert "line 1, is not an answer" in result.stderr
    assert out.read_text("utf-8") == "dear diary\nno newline at the end"


# Help, version, doctor


def test_help_lists_every_command_and_the_exit_codes(run: Run) -> None:
    result = run("--help")
    assert result.exit_code == 0
    for name in _COMMANDS:
        assert f"  {name} " in result.stdout
    for word in ("2 wrong usage", "3 a picture", "130", "interrupted"):
        assert word in result.stdout


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"vqa-app {__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    """What makes help slow is imports; a timed test would measure the machine."""
    code = (
        "import sys\nfrom vqa_app.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'gradio', 'numpy', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_doctor_tells_versions_and_nothing_private(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    result = run("doctor")
    assert result.exit_code == 0
    for word in (f"version {__version__}", "torch ", "transformers ", "memory", "cpu", "built-in"):
        assert word in result.stdout
    assert "hf_secret" not in result.stdout
    assert str(Path.home()) + os.sep not in result.stdout


def test_doctor_tells_the_rest_without_a_home(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in containers, where a user may be a number."""
    monkeypatch.setenv("HOME", "/no/such/home")
    result = run("doctor")
    assert result.exit_code == 0, result.stderr
    assert "free in the home folder's file system" in result.stdout

    def broken() -> Iterator[str]:
        yield "begun"
        raise OSError("no such thing")

    monkeypatch.setattr(doctor, "_machine", broken)
    result = run("doctor")
    assert result.exit_code == 0
    assert "  begun\n  OSError: no such thing\ndevices" in result.stdout


# As a process

_WITH_FAKE = """
import sys
from tests.fake_engine import FakeEngine
from vqa_app import ask, cli
ask.open_engine = lambda choice, console: FakeEngine(hold_after=2)
cli.main(sys.argv[1:])
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_in_the_middle_of_an_answer(cat: str) -> None:
    # A test run behind a shell's "&" ignores Ctrl-C, and what it starts would, too.
    minding = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    process = subprocess.Popen(
        [sys.executable, "-c", minding + _WITH_FAKE, "ask", cat, "What is it?"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    assert process.stdout is not None
    assert process.stdout.read(3) == b"You"  # it streams, and is now held
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert errors.decode().strip() == "Interrupted."


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_a_reader_that_goes_away_is_no_bug(photos: Path) -> None:
    code = _WITH_FAKE.replace("hold_after=2", "")
    process = subprocess.Popen(
        [sys.executable, "-c", code, "ask", "--each", str(photos), "What?"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    assert process.stdout is not None
    process.stdout.close()
    errors = process.stderr.read().decode() if process.stderr else ""
    process.wait(timeout=PATIENCE)
    assert "Traceback" not in errors
    assert "bug" not in errors


def test_python_dash_m_is_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vqa_app", "--version"], capture_output=True, text=True
    )
    assert done.stdout == f"vqa-app {__version__}\n"


def test_stdin_holds_bytes_not_text(run: Run, engine: FakeEngine) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 3)).save(buffer, "BMP")
    assert run("ask", "-", "What?", input=buffer.getvalue()).exit_code == 0
    assert run("ask", "-", "What?", input=b"").exit_code == 3
