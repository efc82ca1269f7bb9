"""A short run of `tests.benchmarks.load` against a tiny model in this process."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.benchmarks.load import LoadTest
from tests.vqa_app.serving.api_server import serving
from vqa_app.checkpoints.loader import load_model
from vqa_app.engine.local import LocalEngine


@pytest.mark.slow
def test_misbehaving_clients_spoil_no_answer_of_others(tiny_llava_dir: Path) -> None:
    engine = LocalEngine(load_model(str(tiny_llava_dir)))
    with serving(engine) as server:
        load = LoadTest(server.address, "fake", clients=8, seconds=2, every=6)
        with ThreadPoolExecutor(1) as aside:  # Playwright may have an event loop in this one
            report = aside.submit(load.run).result()
    engine.close()
    assert not report.faults, report.text(2)
    assert sum(report.outcomes.values()) > 8
