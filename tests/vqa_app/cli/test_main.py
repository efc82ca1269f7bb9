"""The command line: what it prints, how it reports errors, and what `--help` imports."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from tests.fake_engine import FakeEngine
from tests.waiting import PATIENCE
from vqa_app import __version__
from vqa_app.cli import ask, doctor
from vqa_app.cli.main import _COMMANDS, app
from vqa_app.cli.options import EngineOptions
from vqa_app.engine.protocol import GenerationOptions
from vqa_app.errors import ModelError

Run = Callable[..., Result]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    """Make `ask` use a fake engine for any model, and a new one after that was closed."""
    fake = FakeEngine()

    def open_engine(options: object, console: object) -> FakeEngine:
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


# One question


def test_only_the_answer_goes_to_stdout(run: Run, engine: FakeEngine, cat: str) -> None:
    result = run("ask", cat, "What is it?")
    assert result.exit_code == 0
    assert result.stdout == "You asked 'What is it?' about one picture.\n"
    assert result.stderr == ""
    assert engine.closed


def test_a_question_may_have_several_pictures(
    run: Run, engine: FakeEngine, cat: str, mouse: str
) -> None:
    result = run("ask", cat, mouse, cat, "Which is bigger?")
    assert "about 3 pictures" in result.stdout
    pictures = engine.asked[0][0].pictures
    assert [picture.name for picture in pictures] == ["cat.png", "mouse.png", "cat.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_picture_is_read_from_a_pipe(
    run: Run, engine: FakeEngine, cat: str, tmp_path: Path
) -> None:
    """Shells give the name of a pipe for `<(curl https://...)`."""
    pipe = tmp_path / "63"
    os.mkfifo(pipe)
    picture = Path(cat).read_bytes()
    threading.Thread(target=pipe.write_bytes, args=(picture,), daemon=True).start()
    assert run("ask", str(pipe), "What?").exit_code == 0
    assert len(engine.asked[0][0].pictures) == 1
    result = run("ask", "/dev/null", "What?")
    assert result.exit_code == 3
    assert "is empty" in result.stderr


def test_a_picture_is_read_from_stdin(run: Run, engine: FakeEngine, cat: str) -> None:
    result = run("ask", "-", "What is it?", input=Path(cat).read_bytes())
    assert result.exit_code == 0, result.stderr
    assert engine.asked[0][0].pictures[0].image.size == (20, 10)


def test_a_question_needs_no_picture(run: Run, engine: FakeEngine) -> None:
    assert "no picture" in run("ask", "What can you do?").stdout


@pytest.mark.parametrize("question", ["a" * 300, "What " * 90, "What\0is it?"])
def test_a_question_may_have_any_length(
    run: Run, engine: FakeEngine, cat: str, question: str
) -> None:
    """The last argument is checked for being a file, even if it is too long for a file's name."""
    assert run("ask", cat, question).exit_code == 0
    assert engine.asked[0][0].messages[-1].text == question


def test_changes_to_a_picture_are_printed_to_stderr(
    run: Run, engine: FakeEngine, tmp_path: Path
) -> None:
    path = tmp_path / "see-through.png"
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(path)
    result = run("ask", str(path), "What is it?")
    assert "see-through.png: transparency replaced by white" in result.stderr
    assert "transparency" not in result.stdout


def test_generation_options_are_passed_to_the_engine(
    run: Run, engine: FakeEngine, cat: str
) -> None:
    words = "--max-new-tokens 5 --temperature 0.5 --top-p 0.9 --seed 7 --system Briefly"
    assert run("ask", *words.split(), cat, "What is it?").exit_code == 0
    assert engine.asked[0][1] == GenerationOptions(
        max_new_tokens=5, temperature=0.5, top_p=0.9, seed=7, system="Briefly"
    )


def test_model_options_are_passed_to_the_loader(
    run: Run, engine: FakeEngine, cat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = []

    def open_engine(options: EngineOptions, console: object) -> FakeEngine:
        chosen.append(options)
        return engine

    monkeypatch.setattr(ask, "open_engine", open_engine)
    words = "--model a --adapter b --quantize 4bit --device cpu --dtype float32 --revision c"
    run("ask", *words.split(), "--offline", cat, "What is it?")
    assert chosen == [
        EngineOptions(
            model="a",
            adapter="b",
            quantize="4bit",
            device="cpu",
            dtype="float32",
            revision="c",
            offline=True,
        )
    ]
    assert chosen[0].load_arguments() == {
        "name": "a",
        "adapter": "b",
        "quantize": "4bit",
        "device": "cpu",
        "dtype": "float32",
        "revision": "c",
        "offline": True,
    }


@pytest.mark.parametrize("command", ["ask", "chat", "eval"])
def test_three_commands_have_the_same_model_options(run: Run, command: str) -> None:
    shown = run(command, "--help", env={"COLUMNS": "200"}).stdout
    for field in fields(EngineOptions):
        assert f"--{field.name.replace('_', '-')}" in shown


def test_a_truncated_answer_is_reported(run: Run, engine: FakeEngine, cat: str) -> None:
    result = run("ask", "--max-new-tokens", "2", cat, "What is it?")
    assert result.stdout == "You asked\n"
    assert "cut off" in result.stderr


def test_an_answer_stopped_for_repeating_itself_is_reported(
    run: Run, engine: FakeEngine, cat: str
) -> None:
    engine.finish_reason = "repetition"
    assert "went on repeating the same words" in run("ask", cat, "What is it?").stderr


@pytest.mark.parametrize("follows", [True, False])
@pytest.mark.parametrize("each", [True, False])
def test_a_system_prompt_that_the_model_cannot_follow_causes_a_warning(
    run: Run, engine: FakeEngine, cat: str, each: bool, follows: bool
) -> None:
    engine.system_prompts = follows
    shown = ["--each", cat] if each else [cat]
    result = run("ask", "--system", "Answer in French.", *shown, "What?")
    assert result.exit_code == 0
    assert ("without system prompts" in result.stderr) is not follows


def test_json_output(run: Run, engine: FakeEngine, cat: str) -> None:
    result = run("ask", "--json", cat, "What is it?")
    row = json.loads(result.stdout)
    assert row["question"] == "What is it?"
    assert row["answer"] == "You asked 'What is it?' about one picture."
    assert row["pictures"][0]["name"] == "cat.png"
    assert (row["pictures"][0]["width"], row["pictures"][0]["height"]) == (20, 10)
    assert row["abstained"] is False
    assert row["finish_reason"] == "stop"
    assert (row["confidence"], row["calibrated"]) == (0.75, False)
    assert row["model"] == "fake"


# Choices, abstention, attention maps


def test_choices_print_the_most_probable_answer(run: Run, engine: FakeEngine, cat: str) -> None:
    assert run("ask", "--choices", "yes, no", cat, "Is it red?").stdout == "yes\n"
    row = json.loads(run("ask", "--choices", "yes,no", "--json", cat, "Is it red?").stdout)
    assert row["answer"] == "yes"
    assert row["choices"] == {"yes": pytest.approx(2 / 3, 1e-3), "no": pytest.approx(1 / 3, 1e-3)}


@pytest.mark.parametrize("choices", ["yes", "", "yes,yes", " , "])
def test_at_least_two_choices_are_required(
    run: Run, engine: FakeEngine, cat: str, choices: str
) -> None:
    result = run("ask", "--choices", choices, cat, "Is it red?")
    assert result.exit_code == 2
    assert "at least two" in result.stderr


def test_an_answer_below_the_threshold_is_withheld(run: Run, engine: FakeEngine, cat: str) -> None:
    sure = run("ask", "--abstain", "0.7", cat, "What is it?")
    unsure = run("ask", "--abstain", "0.8", cat, "What is it?")
    assert "one picture" in sure.stdout
    assert unsure.stdout == "I am not sure.\n"
    assert unsure.exit_code == 0
    row = json.loads(run("ask", "--abstain", "0.8", "--json", cat, "What is it?").stdout)
    assert row["abstained"] is True
    assert row["answer"] == "I am not sure."
    assert "one picture" in row["would_have_said"]


def test_a_choice_below_the_threshold_is_withheld(run: Run, engine: FakeEngine, cat: str) -> None:
    words = ("ask", "--choices", "a,b,c", cat, "Which?", "--abstain")
    assert run(*words, "0.5").stdout == "a\n"
    assert run(*words, "0.6").stdout == "I am not sure.\n"


def test_abstain_must_be_a_probability(run: Run, engine: FakeEngine, cat: str) -> None:
    for value in ("80", "-0.1", "nan"):
        assert run("ask", "--abstain", value, cat, "What?").exit_code == 2


def test_explain_saves_an_overlay(run: Run, engine: FakeEngine, cat: str, tmp_path: Path) -> None:
    target = tmp_path / "map.png"
    result = run("ask", "--explain", str(target), cat, "What is it?")
    assert result.exit_code == 0, result.stderr
    assert str(target) in result.stderr.replace("\n", "")
    with Image.open(target) as drawn:
        assert drawn.size == (512, 256)
        assert drawn.getpixel((5, 5)) != drawn.getpixel((500, 250))


def test_explain_saves_an_overlay_for_each_picture(
    run: Run, engine: FakeEngine, cat: str, mouse: str, tmp_path: Path
) -> None:
    run("ask", "--explain", str(tmp_path / "map.png"), cat, mouse, "Which?")
    assert {path.name for path in tmp_path.glob("map*")} == {"map-1.png", "map-2.png"}


def test_explain_is_rejected_before_answering_if_the_model_lacks_support(
    run: Run, monkeypatch: pytest.MonkeyPatch, cat: str, tmp_path: Path
) -> None:
    fake = FakeEngine(attention_maps=False)
    monkeypatch.setattr(ask, "open_engine", lambda options, console: fake)
    result = run("ask", "--explain", str(tmp_path / "map.png"), cat, "What is it?")
    assert result.exit_code == 4
    assert result.stdout == ""
    assert "does not support attention maps" in result.stderr


def test_explain_rejects_folders_and_the_pictures_themselves(
    run: Run, engine: FakeEngine, cat: str, mouse: str, tmp_path: Path
) -> None:
    (tmp_path / "folder.png").mkdir()
    result = run("ask", "--explain", f"{tmp_path}/folder.png", cat, "What is it?")
    assert (result.exit_code, result.stdout) == (2, "")  # rejected before answering
    assert "folder.png is a folder" in result.stderr
    (tmp_path / "map-2.png").symlink_to(mouse)
    result = run("ask", "--explain", f"{tmp_path}/map.png", cat, mouse, "Same?")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "map-2.png would overwrite the picture itself" in result.stderr


def test_an_attention_map_that_cannot_be_written_is_a_usage_error(
    run: Run, engine: FakeEngine, cat: str, tmp_path: Path
) -> None:
    (tmp_path / "map.png").symlink_to("no/such/folder.png")
    result = run("ask", "--explain", f"{tmp_path}/map.png", cat, "What is it?")
    assert result.exit_code == 2
    assert f"Could not write {tmp_path}/map.png: " in result.stderr


# Errors: two lines, an exit code, no traceback


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["gone.png", "What?"], 3, "There is no file gone.png"),
        (["gone.png"], 2, "The question is missing"),
        ([], 2, "The question is missing"),
        (["CAT", ""], 2, "The question is empty"),
        (["FOLDER"], 2, "--each FOLDER"),
        (["FOLDER/"], 2, "--each FOLDER/"),
        (["CAT", "FOLDER"], 2, "--each FOLDER"),
        (["FOLDER", "What is it?"], 2, "--each FOLDER"),
        (["What is it?", "CAT"], 2, "Put the question last, in quotes"),
        (["CAT", "What", "is", "it?"], 2, "needs quotes"),
        (["--each", "CAT", "What", "is", "it?"], 2, "needs quotes"),
        (["nofile", "What is it?"], 3, "There is no file nofile"),
        (["LONG", "What is it?"], 3, "Could not read"),
        (["CAT", "--explain", "LONG/map.png", "What?"], 2, "no folder"),
        (["--each", "CAT", "--out", "LONG/a.jsonl", "What?"], 2, "no folder"),
        (["CAT", "CAT"], 2, "The question is missing"),
        (["-", "-", "What?"], 2, "stdin has only one"),
        (["ftp://host/cat.png", "What?"], 3, "Cannot download pictures from ftp"),
        (["--explain", "no/such/map.png", "CAT", "What?"], 2, "no folder"),
        (["--explain", "map.txt", "CAT", "What?"], 2, "needs the name of an image file"),
        (["--explain", "CAT", "CAT", "What?"], 2, "would overwrite the picture itself"),
        (["--seed", str(1 << 70), "CAT", "What?"], 2, "seed is 1180591620717411303424"),
        (["--explain", "map.png", "What?"], 2, "needs a picture"),
        (["--out", "a.jsonl", "CAT", "What?"], 2, "--out needs --each"),
        (["--each", "CAT"], 2, "needs a question"),
        (["--each", "*.none", "What?"], 3, "No file matches"),
        (["--each", "a.png", "CAT", "What?"], 2, "Quote the pattern"),
        (["--max-megapixels", "0.0001", "CAT", "What?"], 3, "the limit is"),
        (["--max-file-mb", "0.00001", "CAT", "What?"], 3, "is larger than"),
        (["--max-file-mb", "9e9", "CAT", "What?"], 2, "--max-file-mb is 9000000000.0"),
        (["--max-megapixels", "nan", "CAT", "What?"], 2, "--max-megapixels is nan"),
        (["--max-file-mb", "0", "CAT", "What?"], 2, "--max-file-mb is 0.0"),
        (["--max-megapixels", "0", "CAT", "What?"], 2, "--max-megapixels is 0.0"),
        (["--max-megapixels", "90", "CAT", "What?"], 2, "Give a number from 0.000001 to 89."),
        (["http://"], 2, "Pictures may be files, http(s) addresses"),
        (["http://", "CAT", "What?"], 2, "'http://' is not the address of a picture"),
        (["https://host/cat.png"], 2, "vqa-app ask https://host/cat.png"),
        (["--max-file-mb", "-1", "CAT", "What?"], 2, "--max-file-mb is -1"),
        (["--temperature", "nan", "CAT", "What?"], 2, "temperature is nan"),
        (["--temperature", "inf", "CAT", "What?"], 2, "temperature is inf"),
        (["--temperature", "11", "CAT", "What?"], 2, "temperature is 11"),
        (["--top-p", "0", "CAT", "What?"], 2, "Give a number from 0.000001 to 1."),
        (["--max-new-tokens", "9" * 30, "CAT", "What?"], 2, "max_new_tokens is 9"),
        (["--temperature", "-1", "CAT", "What?"], 2, "temperature is -1"),
        (["--max-new-tokens", "0", "CAT", "What?"], 2, "max_new_tokens is 0"),
    ],
)
def test_wrong_usage_is_reported_with_a_hint(
    run: Run, engine: FakeEngine, cat: str, words: list[str], code: int, message: str
) -> None:
    names = {"CAT": cat, "FOLDER": str(Path(cat).parent), "FOLDER/": f"{Path(cat).parent}/"}
    words = [word.replace("LONG", "x" * 300) for word in words]
    result = run("ask", *[names.get(word, word) for word in words])
    assert result.exit_code == code
    assert message.replace("FOLDER", names["FOLDER"]) in result.stderr
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
def test_errors_are_red_on_terminals_with_colours(environment: dict[str, str], red: bool) -> None:
    import pty

    ours, theirs = pty.openpty()
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "TERM")}
    code = (
        "from vqa_app.cli.failures import report\nfrom vqa_app.errors import VqaError\n"
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
def test_data_commands_stay_offline_on_request(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("finetune.cli.train.stay_offline", lambda: asked.append(command))
    words = (command, "--data", str(tmp_path / "gone.json"))
    assert run(*words).exit_code == run(*words, "--offline").exit_code != 0
    assert asked == [command]


def test_a_tilde_after_an_equals_sign_is_the_home_folder(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    given: list[Path] = []
    monkeypatch.setattr("finetune.runs.merge.merge", lambda _run, out, dtype: given.append(out))
    run("merge", str(tmp_path), "--out=~/there")
    assert given == [tmp_path / "there"]


def test_values_of_options_are_checked(run: Run) -> None:
    assert run("finetune", "--stage", "loro").exit_code == 2
    assert "projector|lora|qlora|full" in run("finetune", "--help").stdout
    message = run("ask", "--quantize", "3bit", "What?").stderr
    assert "Invalid value for '--quantize': '3bit' is not one of" in message


_MISSING_PATHS = [
    (3, "ask nosuch.png What?"),
    (3, "ask --each nosuch/*.png What?"),
    (3, "ask --each nosuch What?"),
    (4, "ask --model ./nosuch CAT What?"),
    (4, "ask --adapter ./nosuch CAT What?"),
    (4, "chat --no-browser --port 0 --model ./nosuch"),
    (4, "models --runs nosuch"),
    (4, "compose --encoder ./nosuch --llm ./nosuch --out here"),
    (5, "check-data --data nosuch.json"),
    (5, "check-data --data DATA --images nosuch"),
    (5, "check-data --data DATA --eval-data nosuch.json"),
    (4, "check-data --data DATA --model ./nosuch"),
    (2, "check-data --config nosuch.yaml"),
    (5, "show-sample --data nosuch.json"),
    (4, "show-sample --data DATA --model ./nosuch"),
    (5, "finetune --data nosuch.json --out here"),
    (5, "finetune --data DATA --images nosuch --out here"),
    (5, "finetune --data DATA --eval-data nosuch.json --out here"),
    (4, "finetune --data DATA --model ./nosuch --out here"),
    (2, "finetune --config nosuch.yaml"),
    (5, "eval --data nosuch.json"),
    (4, "eval --data DATA --model ./nosuch"),
    (4, "eval --data DATA --against ./nosuch"),
    (4, "verify nosuch"),
    (4, "merge nosuch --out here"),
]
_RUN_EACH = """
import json, sys
from vqa_app.cli.main import main
for words in json.load(sys.stdin):
    try:
        main(words)
    except SystemExit as exit:
        print(json.dumps([exit.code, sorted({"torch", "transformers"} & set(sys.modules))]))
"""


def test_a_missing_path_has_the_same_exit_code_everywhere_and_is_found_before_torch_loads(
    cat: str, tmp_path: Path
) -> None:
    """Importing torch and transformers takes seconds, and took minutes on a busy machine."""
    data = tmp_path / "data.csv"
    data.write_text("image,question,answer\ncat.png,What is it?,a cat\n")
    names = {"CAT": cat, "DATA": str(data)}
    commands = [[names.get(word, word) for word in text.split()] for _, text in _MISSING_PATHS]
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", _RUN_EACH],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert [
        (code, text) for (code, _), (_, text) in zip(outcomes, _MISSING_PATHS, strict=True)
    ] == (_MISSING_PATHS), done.stderr
    slow = [text for (_, found), (_, text) in zip(outcomes, _MISSING_PATHS, strict=True) if found]
    assert not slow
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "here").exists()


def test_a_model_error_has_its_exit_code(run: Run, engine: FakeEngine, cat: str) -> None:
    engine.error = ModelError("It broke.", "Fix it.")
    result = run("ask", cat, "What is it?")
    assert result.exit_code == 4
    assert result.stderr == "Error: It broke.\nFix it.\n"
    assert engine.closed


def test_a_bug_shows_a_traceback_only_with_debug(run: Run, engine: FakeEngine, cat: str) -> None:
    engine.error = RuntimeError("wrong shape")
    result = run("ask", cat, "What is it?")
    assert result.exit_code == 1
    assert "RuntimeError: wrong shape" in result.stderr
    assert "Traceback" not in result.stderr
    engine.error = RuntimeError("wrong shape")
    assert isinstance(run("--debug", "ask", cat, "What?").exception, RuntimeError)


def test_running_out_of_memory_is_not_reported_as_a_bug(
    run: Run, engine: FakeEngine, cat: str
) -> None:
    engine.error = RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB)")
    result = run("ask", cat, "What is it?")
    assert result.exit_code == 4
    assert result.stderr.startswith("Error: Not enough memory")
    assert "bug" not in result.stderr


def test_a_failing_gpu_is_not_reported_as_a_bug(run: Run, engine: FakeEngine, cat: str) -> None:
    engine.error = RuntimeError("CUDA error: no kernel image is available for execution on the")
    result = run("ask", cat, "What is it?")
    assert result.exit_code == 4
    assert "The GPU cannot be used" in result.stderr
    assert "--device cpu" in result.stderr
    assert "bug" not in result.stderr


def test_an_interruption_has_its_exit_code(run: Run, engine: FakeEngine, cat: str) -> None:
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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_each_only_writes_to_a_pipe_or_device(
    run: Run, engine: FakeEngine, photos: Path, tmp_path: Path
) -> None:
    """Reading earlier answers from /dev/stdout would wait, and from /dev/full never end."""
    pipe, received = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()), daemon=True)
    reader.start()
    result = run("ask", "--each", f"{photos}/*.png", "What?", "--out", str(pipe))
    assert result.exit_code == 0, result.stderr
    reader.join(PATIENCE)
    assert len(received[0].splitlines()) == 4


def test_each_writes_a_line_for_each_picture(run: Run, engine: FakeEngine, photos: Path) -> None:
    out = photos / "answers.jsonl"
    result = run("ask", "--each", f"{photos}/*.png", "What?", "--out", str(out))
    assert result.exit_code == 0, result.stderr
    assert [row["picture"] for row in rows(out)] == [f"{photos}/{n}.png" for n in range(4)]
    assert all(row["answer"] == "You asked 'What?' about one picture." for row in rows(out))
    assert "4 answered" in result.stderr


def test_each_without_out_prints_json_lines(run: Run, engine: FakeEngine, photos: Path) -> None:
    result = run("ask", "--each", str(photos), "What?")
    assert len([json.loads(line) for line in result.stdout.splitlines()]) == 4


def test_each_with_a_folder_uses_its_pictures(run: Run, engine: FakeEngine, photos: Path) -> None:
    """Other files in it, such as the answers of an earlier run, are ignored."""
    (photos / "notes.txt").write_text("Bring milk.")
    (photos / "0.png").rename(photos / "0.PNG")
    command = ("ask", "--each", str(photos), "What?", "--out", str(photos / "a.jsonl"))
    assert "4 answered" in run(*command).stderr
    again = run(*command)
    assert again.exit_code == 0
    assert "4 of 4 are already answered" in again.stderr
    result = run("ask", "--each", str(photos / "*.txt"), "What?")
    assert result.exit_code == 3
    assert "notes.txt" in result.stderr
    for picture in photos.glob("*.[pP]*"):
        picture.unlink()
    assert "No picture matches" in run(*command).stderr


def test_each_accepts_names_with_brackets(run: Run, engine: FakeEngine, tmp_path: Path) -> None:
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


def test_each_continues_an_interrupted_run(run: Run, engine: FakeEngine, photos: Path) -> None:
    out = photos / "answers.jsonl"
    command = ("ask", "--each", f"{photos}/*.png", "What?", "--out", str(out))
    run(*command)
    lines = out.read_text("utf-8").splitlines(keepends=True)
    out.write_text("".join(lines[:2]) + lines[2][:20], "utf-8")  # killed in the third line
    engine.asked.clear()
    result = run(*command)
    assert "2 of 4 are already answered" in result.stderr
    assert len(engine.asked) == 2
    assert sorted(str(row["picture"]) for row in rows(out)) == [
        f"{photos}/{n}.png" for n in range(4)
    ]


def test_each_loads_no_model_if_everything_is_answered(
    run: Run, engine: FakeEngine, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("ask", "--each", f"{photos}/*.png", "What?", "--out", str(photos / "a.jsonl"))
    run(*command)
    monkeypatch.setattr(ask, "open_engine", lambda *_: pytest.fail("a model was loaded"))
    assert run(*command).exit_code == 0


def test_each_applies_picture_limits_from_the_environment(
    run: Run, engine: FakeEngine, photos: Path
) -> None:
    limited = {"VQA_MAX_MEGAPIXELS": "0.00005"}
    result = run("ask", "--each", str(photos / "0.png"), "What?", env=limited)
    assert result.exit_code == 3
    assert "the limit is" in result.stderr
    assert not engine.asked


def test_each_answers_another_question_again(run: Run, engine: FakeEngine, photos: Path) -> None:
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
def test_each_answers_again_with_another_model_or_option(
    run: Run, engine: FakeEngine, photos: Path, other: str
) -> None:
    out = photos / "a.jsonl"
    command = ("ask", "--each", f"{photos}/*.png", "What?", "--out", str(out))
    assert run(*command).exit_code == 0
    result = run(*command, *other.split())
    assert "already answered" not in result.stderr
    assert f"{out} also contains 4 answers to this question by another model" in result.stderr
    assert len(out.read_text().splitlines()) == 8
    assert "4 of 4 are already answered." in run(*command, *other.split()).stderr
    assert "4 of 4 are already answered." in run(*command).stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are Unicode")
def test_each_accepts_file_names_that_are_not_utf_8(
    run: Run, engine: FakeEngine, tmp_path: Path
) -> None:
    name = os.fsdecode(b"\xff\xfe.png")
    Image.new("RGB", (3, 3)).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / name)
    command = ("ask", "--each", f"{tmp_path}/*.png", "What?")
    to_file = (*command, "--out", str(tmp_path / "a.jsonl"))
    assert run(*to_file).exit_code == 0
    assert "1 of 1 are already answered." in run(*to_file).stderr
    assert json.loads(run(*command).stdout)["picture"] == f"{tmp_path}/{name}"


def test_each_continues_after_a_bad_file(run: Run, engine: FakeEngine, photos: Path) -> None:
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


def test_each_does_not_overwrite_other_files(run: Run, engine: FakeEngine, photos: Path) -> None:
    out = photos / "notes.txt"
    out.write_text("dear diary\nno newline at the end", "utf-8")
    result = run("ask", "--each", f"{photos}/*.png", "What?", "--out", str(out))
    assert result.exit_code == 2
    assert "line 1: expected an answer" in result.stderr
    assert out.read_text("utf-8") == "dear diary\nno newline at the end"


# Help, version, doctor


def test_help_lists_every_command_and_the_exit_codes(run: Run) -> None:
    result = run("--help")
    assert result.exit_code == 0
    for name in _COMMANDS:
        assert f"  {name} " in result.stdout
    for word in ("2 wrong usage", "3 a picture", "130", "interrupted"):
        assert word in result.stdout


def test_version_is_printed(run: Run) -> None:
    assert run("--version").stdout == f"vqa-app {__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    """Imports are what would make help slow, and a timed test would measure the machine."""
    code = (
        "import sys\nfrom vqa_app.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'gradio', 'numpy', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_doctor_prints_versions_and_nothing_private(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    result = run("doctor")
    assert result.exit_code == 0
    for word in (f"version {__version__}", "torch ", "transformers ", "memory", "cpu", "built-in"):
        assert word in result.stdout
    assert "hf_secret" not in result.stdout
    assert str(Path.home()) + os.sep not in result.stdout


def test_doctor_works_without_a_home_folder(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """In containers, users may have no home folder, and any section may fail."""
    monkeypatch.setenv("HOME", "/no/such/home")
    result = run("doctor")
    assert result.exit_code == 0, result.stderr
    assert "free in the home folder's file system" in result.stdout

    def broken() -> Iterator[str]:
        yield "started"
        raise OSError("no such thing")

    monkeypatch.setattr(doctor, "_machine", broken)
    result = run("doctor")
    assert result.exit_code == 0
    assert "  started\n  OSError: no such thing\ndevices" in result.stdout


# As a process

_WITH_FAKE = """
import sys
from tests.fake_engine import FakeEngine
from vqa_app.cli import ask, main
ask.open_engine = lambda options, console: FakeEngine(hold_after=2)
main(sys.argv[1:])
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_during_an_answer_exits_without_a_traceback(cat: str) -> None:
    # If a shell runs the tests in the background, they and their processes ignore Ctrl-C.
    handle_sigint = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    process = subprocess.Popen(
        [sys.executable, "-c", handle_sigint + _WITH_FAKE, "ask", cat, "What is it?"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    assert process.stdout is not None
    assert process.stdout.read(3) == b"You"  # the engine now waits before the third word
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert errors.decode().strip() == "Interrupted."


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_a_closed_pipe_is_not_reported_as_a_bug(photos: Path) -> None:
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


def test_python_dash_m_runs_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vqa_app", "--version"], capture_output=True, text=True
    )
    assert done.stdout == f"vqa-app {__version__}\n"


def test_stdin_is_read_as_bytes(run: Run, engine: FakeEngine) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 3)).save(buffer, "BMP")
    assert run("ask", "-", "What?", input=buffer.getvalue()).exit_code == 0
    assert run("ask", "-", "What?", input=b"").exit_code == 3
