"""Downloads that can be ended, by HTTP and from Xet storage, whose library ignores exceptions."""

from __future__ import annotations

import _thread
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from tests import fake_xet
from tests.fake_xet import FakeXet
from tests.waiting import PATIENCE
from vqa_app.checkpoints import snapshot
from vqa_app.checkpoints.snapshot import download_files, download_snapshot


class Stopped(Exception):
    pass


@pytest.fixture
def xet(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeXet]:
    with fake_xet.use(monkeypatch) as fake:
        yield fake


def stop_when(event: threading.Event) -> Callable[[], None]:
    def check() -> None:
        if event.is_set():
            raise Stopped

    return check


def in_thread(function: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Run a function; the list gets its result or exception."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, results


def test_a_xet_download_ends_although_exceptions_are_ignored(xet: FakeXet) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        download_snapshot(repo_id="a/b", check=stop_when(stop))
    assert xet.attempts == ["a/b"]
    assert xet.aborts


def test_ctrl_c_ends_the_download_of_files_and_begins_no_more(
    xet: FakeXet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This is how data sets are downloaded. `datasets` itself would wait for all files."""
    monkeypatch.setattr(snapshot, "_FILES_AT_ONCE", 2)
    xet.on_first = _thread.interrupt_main
    with pytest.raises(KeyboardInterrupt):
        download_files("a/b", [f"{number}.parquet" for number in range(99)])
    assert xet.aborts
    assert 1 <= len(xet.attempts) < 99


def test_all_files_are_downloaded(xet: FakeXet) -> None:
    xet.finish.set()
    files = [f"{number}.parquet" for number in range(20)]
    download_files("a/b", files)
    assert sorted(xet.attempts) == sorted(f"a/b/{file}" for file in files)


def test_a_download_continues_when_another_one_ends(xet: FakeXet) -> None:
    stop = threading.Event()
    first, ended = in_thread(lambda: download_snapshot(repo_id="a/first", check=stop_when(stop)))
    second, finished = in_thread(lambda: download_snapshot(repo_id="a/second"))
    while len(xet.attempts) < 2:
        first.join(0.01)
    stop.set()
    first.join(PATIENCE)
    assert isinstance(ended[0], Stopped)
    while xet.attempts.count("a/second") < 2:
        second.join(0.01)
    assert not finished
    xet.finish.set()
    second.join(PATIENCE)
    assert finished == [Path("/cache/a/second")]


def test_a_download_by_http_ends_in_its_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    updates: list[int] = []

    def download(repo_id: str, tqdm_class: Any) -> str:
        bar = tqdm_class(total=10**9, unit="B", disable=True)
        while True:
            updates.append(1)
            bar.update(1)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(snapshot, "abort_xet_session", lambda: None)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        download_snapshot(repo_id="a/b", check=stop_when(stop))
    assert updates


def test_a_download_that_begins_while_another_one_is_ended_continues(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its session is aborted, too, before it has noticed."""
    stop, begun, aborted = threading.Event(), threading.Event(), threading.Event()
    attempts: list[str] = []
    seconds: list[tuple[threading.Thread, list[Any]]] = []

    def download(repo_id: str, tqdm_class: Any) -> str:
        attempts.append(repo_id)
        if attempts.count(repo_id) == 1:
            if repo_id == "a/second":
                begun.set()
            assert aborted.wait(PATIENCE)
            raise KeyboardInterrupt
        return repo_id

    def abort() -> None:
        if not seconds:
            seconds.append(in_thread(lambda: download_snapshot(repo_id="a/second")))
            assert begun.wait(PATIENCE)
        aborted.set()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(snapshot, "abort_xet_session", abort)
    stop.set()
    with pytest.raises(Stopped):
        download_snapshot(repo_id="a/first", check=stop_when(stop))
    ((thread, results),) = seconds
    thread.join(PATIENCE)
    assert results == [Path("a/second")]
    assert attempts.count("a/second") == 2


def test_errors_of_a_download_are_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[str] = []

    def download(repo_id: str, tqdm_class: Any) -> str:
        attempts.append(repo_id)
        raise OSError("No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(OSError, match="No space"):
        download_snapshot(repo_id="a/b")
    assert attempts == ["a/b"]


STALLED = """
import socket
from concurrent.futures import ThreadPoolExecutor

import hf_xet
import huggingface_hub
from huggingface_hub.utils import _xet

server = socket.create_server(("127.0.0.1", 0))  # accepts connections and never answers

def snapshot_download(repo_id, tqdm_class):
    def fetch(name):
        with _xet.get_xet_session().new_file_download_group(
            endpoint=f"http://127.0.0.1:{server.getsockname()[1]}",
            token="token",
            token_expiry_unix_secs=2**40,
            progress_callback=lambda *_: 1 / 0,
        ) as group:
            group.start_download_file(hf_xet.XetFileInfo("a" * 64, 10**9), name)
    with ThreadPoolExecutor(2) as pool:
        files = [pool.submit(fetch, name) for name in ("one", "two", "three")]
        print("started", flush=True)
        for file in files:
            file.result()

def hf_hub_download(repo_id, filename, tqdm_class):
    snapshot_download(repo_id, tqdm_class)

huggingface_hub.snapshot_download = snapshot_download
huggingface_hub.hf_hub_download = hf_hub_download

from vqa_app.checkpoints.snapshot import download_files, download_snapshot

"""
MODEL = 'download_snapshot(repo_id="owner/name")'
DATA_SET = 'download_files("owner/name", ["train.parquet"])'


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGINT cannot be sent to one process")
@pytest.mark.parametrize("call", [MODEL, DATA_SET])
def test_ctrl_c_ends_a_stalled_download_by_the_real_hf_xet(tmp_path: Path, call: str) -> None:
    pytest.importorskip("hf_xet")
    proxies = {"http_proxy", "all_proxy", "https_proxy"}
    environment = {name: value for name, value in os.environ.items() if name.lower() not in proxies}
    process = subprocess.Popen(
        [sys.executable, "-c", STALLED + call],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(Path(__file__).parents[3])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
