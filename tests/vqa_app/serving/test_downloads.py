"""Downloads that Cancel ends, also those from Xet storage, whose library ignores exceptions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import fake_hub, fake_xet
from tests.fake_xet import FakeXet
from tests.waiting import PATIENCE, until
from vqa_app.errors import ModelError
from vqa_app.serving.downloads import download_model
from vqa_app.serving.engine_pool import EnginePool, LoadingCancelled, ModelChoice
from vqa_app.serving.model_choices import TO_DOWNLOAD, load_engine

NAME = "someone/model"


@pytest.fixture
def xet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeXet]:
    """Serve a hub with one model, whose files come from Xet storage and never arrive."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"x" * 3000)
    with fake_hub.serve(monkeypatch, tmp_path / "cache") as hub, fake_xet.use(monkeypatch) as fake:
        hub.repositories = {NAME: folder}
        yield fake


@pytest.mark.parametrize("group", [TO_DOWNLOAD, ""], ids=["confirmed", "command-line"])
def test_cancel_ends_a_xet_download(xet: FakeXet, group: str) -> None:
    """From the pool through `load_engine` down to hf_xet's session; `close` cancels, too."""
    choice = ModelChoice("key", "Model", "", group, NAME, here=False)
    pool = EnginePool(load_engine, lambda: [choice], "key")
    pool.start_loading(download=True)
    until(lambda: xet.attempts)
    assert not xet.aborts
    pool.cancel_loading("key")
    with pytest.raises(ModelError, match="was cancelled"):
        pool.wait(timeout=PATIENCE)
    assert xet.aborts
    assert xet.attempts == [NAME]
    pool.close()


def test_an_exception_of_the_progress_report_ends_a_xet_download_that_has_stalled(
    xet: FakeXet,
) -> None:
    """Nothing is reported then, so the latest state is reported again and again."""
    reports: list[str] = []

    def progress(message: str, share: float | None = None) -> None:
        reports.append(message)
        if len(reports) > 3:
            raise LoadingCancelled

    xet.stalled = True
    with pytest.raises(LoadingCancelled):
        download_model(NAME, progress)
    assert xet.aborts
    assert set(reports) == {"Contacting the hub …"}
