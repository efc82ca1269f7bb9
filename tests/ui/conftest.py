"""Clients of the server that a test module runs as its fixture `server`."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.ui.server import RunningServer, open_client


@pytest.fixture
def person(server: RunningServer) -> Iterator[httpx.Client]:
    """Return a client with a cookie of its own."""
    with open_client(server) as client:
        yield client


@pytest.fixture
def other(server: RunningServer) -> Iterator[httpx.Client]:
    """Return a client of another owner than `person`."""
    with open_client(server) as client:
        yield client
