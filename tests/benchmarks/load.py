"""Put a server under load, with clients that misbehave, and check every answer.

    python -m tests.benchmarks.load
    python -m tests.benchmarks.load --seconds 20 --clients 16

Starts `vqa-app serve` on this machine and asks it 60 things one after another: greedy, with a seed,
as JSON, choices, and several pictures and turns. Then clients ask the same all at once, while
others stop their streams, read slowly, send too much, send what is no JSON, and break their
connections. New questions, which nobody asked before, are asked once more when all is quiet. A
fault is an answer other than that of the quiet server, an error that is not the client's, and a
request that is neither answered nor refused.

At the end `vqa-app chat` is killed (SIGKILL) while it answers, and started again: all conversations
must be there, with every answer that was complete.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import httpx
from PIL import Image, ImageDraw

REQUEST_SECONDS = 180.0
"""After so long without an end, a request counts as lost."""
TOO_LARGE = 64 * 2**20 + 1
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
QUESTIONS = ("What colour is the shape ?", "What is in the picture ?", "Is there a circle ?")
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": list(COLOURS)}, "circle": {"type": "boolean"}},
    "required": ["colour", "circle"],
    "additionalProperties": False,
}


@dataclass
class Report:
    """What happened."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often a client did something, and how it ended."""
    faults: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """Durations of answered requests."""
    health: list[float] = field(default_factory=list)
    """Durations of `/healthz` meanwhile."""
    memory: list[float] = field(default_factory=list)
    """Memory of the server in MB, about once a second."""
    idle: list[float] = field(default_factory=list)
    """The same before and after the load."""

    def text(self, duration: float) -> str:
        """Return the report as a table."""
        total = sum(self.outcomes.values())
        lines = [f"{total} requests in {duration:.0f} s"]
        for (action, outcome), count in sorted(self.outcomes.items()):
            lines.append(f"  {action:20} {outcome:28} {count:6}")
        if len(self.seconds) > 1:
            lines.append(
                f"answered within {statistics.median(self.seconds):.2f} s (median),"
                f" {statistics.quantiles(self.seconds, n=20)[-1]:.2f} s (95 %),"
                f" {max(self.seconds):.2f} s (all)"
            )
        if self.health:
            lines.append(f"/healthz: at most {max(self.health):.2f} s")
        if (spread := self.spread()) is not None:
            low, high = spread
            lines.append(f"memory after warm-up: {low:+.1%} to {high:+.1%}, {self.parts()}")
            lines.append(f"memory of the idle server: {self.idle[0]:.0f}, {self.idle[1]:.0f} MB")
        lines.append(f"faults: {len(self.faults)}")
        return "\n".join(lines + [f"  {fault}" for fault in self.faults[:20]])

    def parts(self) -> str:
        """Return the memory in ten parts of the time."""
        size = max(1, len(self.memory) // 10)
        starts = range(0, len(self.memory), size)
        return (
            " ".join(f"{statistics.median(self.memory[s : s + size]):.0f}" for s in starts) + " MB"
        )

    def spread(self) -> tuple[float, float] | None:
        """Return how far the memory went below and above that at the end of the first third.

        Each value is a median over a tenth of the time. None if it was not measured.
        """
        size = len(self.memory) // 10
        if size < 1:
            return None
        medians = [statistics.median(self.memory[k * size : (k + 1) * size]) for k in range(10)]
        reference = medians[3]
        later = [value / reference - 1 for value in medians[3:]]
        return min(later), max(later)


@dataclass(frozen=True)
class KnownRequest:
    """A request, and the answer of a quiet server."""

    body: dict[str, Any]
    answer: str


class Wrong(Exception):
    """Raised for an answer that is not as it should be."""


def picture_uri(colour: str, shape: str, size: tuple[int, int] = (128, 128)) -> str:
    """Return a drawing of a shape as a `data:` URI."""
    image = Image.new("RGB", size, "white")
    draw = getattr(ImageDraw.Draw(image), shape)
    draw((size[0] // 4, size[1] // 4, 3 * size[0] // 4, 3 * size[1] // 4), fill=colour)
    file = BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def question(text: str, *urls: str) -> dict[str, Any]:
    """Return a message with a question about pictures."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def known_bodies(model: str, with_schema: bool) -> Iterator[dict[str, Any]]:
    """Yield different requests whose answers do not depend on chance."""
    greedy = {"model": model, "temperature": 0, "max_tokens": 24}
    pictures = [
        picture_uri(colour, shape) for colour in COLOURS for shape in ("ellipse", "rectangle")
    ]
    for number, url in enumerate(pictures):
        for text in QUESTIONS:
            yield {**greedy, "messages": [question(text, url)]}
        sampled = {"model": model, "temperature": 1.0, "seed": number, "max_tokens": 16}
        yield {**sampled, "messages": [question("Describe the picture .", url)]}
        other = pictures[number - 1]
        if number % 3 == 0:
            dialogue = [
                question(QUESTIONS[0], url),
                {"role": "assistant", "content": "red"},
                question("And now ?", other),
            ]
            yield {**greedy, "messages": dialogue}
            big = picture_uri(COLOURS[number // 2], "ellipse", (3000, 2000))
            yield {**greedy, "messages": [question(QUESTIONS[1], big)]}
            chosen = {"vqa": {"choices": ["yes", "no", "red", "blue"]}}
            yield {"model": model, "messages": [question(QUESTIONS[2], url)], **chosen}
            if with_schema:
                form = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
                asked = [question("Which colour and shape ?", url)]
                yield {**greedy, "max_tokens": 40, "messages": asked, "response_format": form}


class LoadTest:
    """Asks a server at `address` (of `/v1`) for some time.

    Args:
        address: Where its API is.
        model: Name of the model.
        clients: How many clients ask at once.
        seconds: For how long.
        process: Number of the server's process, whose memory is measured; None measures nothing.
        schemas: Whether the server can answer in JSON.
        every: 5 for every fifth of the known requests, which saves time before the test.
        seed: What the clients do depends on it.
    """

    def __init__(
        self,
        address: str,
        model: str,
        clients: int,
        seconds: float,
        *,
        process: int | None = None,
        schemas: bool = False,
        every: int = 1,
        seed: int = 0,
    ) -> None:
        self.address, self.model, self.clients, self.seconds = address, model, clients, seconds
        self.report = Report()
        self._process = process
        self._bodies = list(known_bodies(model, schemas))[::every]
        self._random = random.Random(seed)
        self._known: list[KnownRequest] = []
        self._novel: list[KnownRequest] = []
        place = urlsplit(address)
        self._host, self._port = str(place.hostname), int(place.port or 80)

    def run(self) -> Report:
        """Run the test, and return what happened."""
        asyncio.run(self._run())
        return self.report

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            timeout=REQUEST_SECONDS, limits=limits, trust_env=False
        ) as client:
            self._client = client
            for body in self._bodies:
                self._known.append(KnownRequest(body, await self._quiet_answer(body)))
            self._measure(self.report.idle)
            self._end = time.monotonic() + self.seconds
            watching = asyncio.create_task(self._watch())
            await asyncio.gather(*(self._act() for _ in range(self.clients)))
            watching.cancel()
            await self._check_afterwards()
            self._measure(self.report.idle)

    def _measure(self, found: list[float]) -> None:
        """Add the memory of the server to a list."""
        if self._process is not None:
            found.append(memory_of(self._process))

    async def _quiet_answer(self, body: dict[str, Any]) -> str:
        response = await self._client.post(f"{self.address}/chat/completions", json=body)
        response.raise_for_status()
        return str(response.json()["choices"][0]["message"]["content"])

    async def _check_afterwards(self) -> None:
        """Check that the server is idle again and answers new questions as it did under load."""
        root = self.address.removesuffix("/v1")
        for _ in range(100):
            metrics = (await self._client.get(f"{root}/metrics")).text
            if "\nvqa_answers_in_progress 0\n" in metrics:
                break
            await asyncio.sleep(0.1)
        else:
            self.report.faults.append("answers are in progress that nobody waits for")
        for request in self._novel:
            if await self._quiet_answer(request.body) != request.answer:
                self.report.faults.append(f"a new question was answered {request.answer!r}")
        self.report.outcomes["asked again", "the same"] += len(self._novel)

    async def _watch(self) -> None:
        """Measure memory and health once a second."""
        root = self.address.removesuffix("/v1")
        while True:
            began = time.perf_counter()
            await self._client.get(f"{root}/healthz")
            self.report.health.append(time.perf_counter() - began)
            self._measure(self.report.memory)
            await asyncio.sleep(1)

    async def _act(self) -> None:
        """Do one thing after another until the end."""
        actions: dict[Action, int] = {
            self._ask: 6,
            self._stream: 6,
            self._ask_new: 2,
            self._read_slowly: 2,
            self._stop_stream: 4,
            self._break_off: 2,
            self._ask_several: 1,
            self._send_too_much: 1,
            self._send_endlessly: 1,
            self._send_no_json: 2,
            self._send_nested: 1,
            self._send_bad_request: 1,
            self._ask_unknown_model: 1,
        }
        while time.monotonic() < self._end:
            action = self._random.choices(list(actions), list(actions.values()))[0]
            name = action.__name__.removeprefix("_").replace("_", " ")
            try:
                outcome = await asyncio.wait_for(action(), REQUEST_SECONDS)
            except (Wrong, httpx.HTTPError, OSError, TimeoutError) as error:
                outcome = "fault"
                self.report.faults.append(f"{name}: {type(error).__name__}: {error}"[:300])
            self.report.outcomes[name, outcome] += 1
            if outcome == "refused with 429":
                await asyncio.sleep(self._random.uniform(0.5, 2))

    def _pick(self) -> KnownRequest:
        return self._random.choice(self._known)

    async def _ask(self) -> str:
        request = self._pick()
        return await self._compare(request)

    async def _compare(self, request: KnownRequest, **extra: Any) -> str:
        began = time.perf_counter()
        body = {**request.body, **extra}
        response = await self._client.post(f"{self.address}/chat/completions", json=body)
        if response.status_code == 429:
            return "refused with 429"
        _expect(response.status_code, (200,), response.text)
        for choice in response.json()["choices"]:
            _expect_text(choice["message"]["content"], request.answer)
        self.report.seconds.append(time.perf_counter() - began)
        return "answered"

    async def _ask_several(self) -> str:
        request = self._pick()
        if request.body.get("temperature") != 0:
            return await self._compare(request)
        return await self._compare(request, n=3)

    async def _ask_new(self) -> str:
        """Ask what nobody asked before; `_check_afterwards` asks it again."""
        colour = "#%06x" % self._random.randrange(1 << 24)  # noqa: UP031  short
        body = {
            "model": self.model,
            "temperature": 0,
            "max_tokens": 16,
            "messages": [question(QUESTIONS[0], picture_uri(colour, "rectangle"))],
        }
        response = await self._client.post(f"{self.address}/chat/completions", json=body)
        if response.status_code == 429:
            return "refused with 429"
        _expect(response.status_code, (200,), response.text)
        text = str(response.json()["choices"][0]["message"]["content"])
        self._novel.append(KnownRequest(body, text))
        return "answered"

    async def _stream(self) -> str:
        return await self._read_stream(self._pick())

    async def _read_slowly(self) -> str:
        return await self._read_stream(self._pick(), pause=self._random.uniform(0.05, 0.4))

    async def _stop_stream(self) -> str:
        return await self._read_stream(self._pick(), pieces=self._random.randrange(6))

    async def _read_stream(
        self, request: KnownRequest, pause: float = 0.0, pieces: int | None = None
    ) -> str:
        """Read a stream to its end, or until so many pieces have come."""
        began = time.perf_counter()
        text, finished, done = "", False, False
        body = {**request.body, "stream": True}
        url = f"{self.address}/chat/completions"
        async with self._client.stream("POST", url, json=body) as response:
            if response.status_code == 429:
                return "refused with 429"
            if response.status_code != 200:
                _expect(response.status_code, (200,), (await response.aread()).decode())
            async for line in response.aiter_lines():
                if pieces is not None and pieces <= 0:
                    if not request.answer.startswith(text):
                        raise Wrong(f"{text!r} is no beginning of {request.answer!r}")
                    return "left"
                if line == "data: [DONE]":
                    done = True
                elif line.startswith("data: "):
                    data = json.loads(line[6:])
                    if "error" in data:
                        raise Wrong(f"error in the stream: {data['error']}")
                    for choice in data["choices"]:
                        text += choice["delta"].get("content") or ""
                        finished = finished or choice["finish_reason"] is not None
                    pieces = None if pieces is None else pieces - 1
                    await asyncio.sleep(pause)
        _expect_text(text, request.answer)
        if not (done and finished):
            raise Wrong("a stream ended without its end")
        self.report.seconds.append(time.perf_counter() - began)
        return "answered"

    async def _break_off(self) -> str:
        """Send a part of a request, or all of it, and reset the connection."""
        body = json.dumps(self._pick().body).encode()
        sent = self._random.choice([0, len(body) // 2, len(body)])
        _, writer = await asyncio.open_connection(self._host, self._port)
        writer.write(self._head(f"Content-Length: {len(body)}") + body[:sent])
        await writer.drain()
        await asyncio.sleep(self._random.uniform(0, 0.3))
        writer.transport.abort()
        return "left"

    async def _send_too_much(self) -> str:
        """Announce a body that is too large."""
        return await self._raw(self._head(f"Content-Length: {TOO_LARGE}"), (413,))

    async def _send_endlessly(self) -> str:
        """Send a body without a length until it is refused."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(self._head("Transfer-Encoding: chunked"))
            piece = b"100000\r\n" + b" " * 2**20 + b"\r\n"
            with suppress(ConnectionError):
                for _ in range(TOO_LARGE // 2**20 + 1):
                    writer.write(piece)
                    await writer.drain()
                writer.write(b"0\r\n\r\n")
            with suppress(ConnectionError):
                status = int((await reader.readline()).split()[1])
                _expect(status, (413, 429), "")
                return f"refused with {status}"
            return "connection closed"
        finally:
            writer.transport.abort()

    async def _send_no_json(self) -> str:
        bodies = (b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"model": 1}', b'"' * 1000)
        return await self._refused(self._random.choice(bodies))

    async def _send_nested(self) -> str:
        depth = self._random.choice([100, 1000, 100_000])
        bodies = (
            b"[" * depth,
            b'{"model": ' * depth,
            b'{"messages": ' + b"[" * depth + b"]" * depth + b"}",
            b'{"model": "x", "messages": [], "response_format": {"type": "json_schema",'
            b' "json_schema": {"schema": ' + b'{"a": ' * depth + b"1" + b"}" * (depth + 3),
        )
        return await self._refused(self._random.choice(bodies))

    async def _send_bad_request(self) -> str:
        """Send what no server here can do, in a valid request otherwise."""
        changes: Sequence[dict[str, Any]] = (
            {"tools": [{"type": "function"}]},
            {"temperature": 9},
            {"messages": [question("x", "data:image/png;base64,QUJD")]},
            {"messages": [question("x", "/etc/hostname")]},
            {"messages": [question("word " * 20_000)]},
        )
        body = {**self._pick().body, **self._random.choice(changes)}
        return await self._refused(json.dumps(body).encode())

    async def _ask_unknown_model(self) -> str:
        body = {**self._pick().body, "model": "gpt-99"}
        return await self._refused(json.dumps(body).encode(), (404,))

    async def _refused(self, body: bytes, expected: tuple[int, ...] = (400,)) -> str:
        url = f"{self.address}/chat/completions"
        response = await self._client.post(url, content=body)
        _expect(response.status_code, (*expected, 429), response.text)
        if "message" not in response.json()["error"]:
            raise Wrong("an error without a message")
        return f"refused with {response.status_code}"

    async def _raw(self, request: bytes, expected: tuple[int, ...]) -> str:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(request)
            await writer.drain()
            status = int((await reader.readline()).split()[1])
            _expect(status, expected, "")
            return f"refused with {status}"
        finally:
            writer.transport.abort()

    def _head(self, length: str) -> bytes:
        path = urlsplit(self.address).path
        return (
            f"POST {path}/chat/completions HTTP/1.1\r\nHost: {self._host}\r\n"
            f"Content-Type: application/json\r\n{length}\r\n\r\n"
        ).encode()


Action: TypeAlias = Callable[[], Awaitable[str]]


def _expect(status: int, expected: tuple[int, ...], text: str) -> None:
    if status not in expected:
        raise Wrong(f"status {status}: {text[:200]}")


def _expect_text(text: str, expected: str) -> None:
    if text != expected:
        raise Wrong(f"{text!r} instead of {expected!r}")


def memory_of(process: int) -> float:
    """Return the resident memory of a process, in MB."""
    import psutil

    return float(psutil.Process(process).memory_info().rss) / 2**20


# -- a chat that is killed -------------------------------------------------------------------------


def kill_chat(model: str, conversations: int = 5) -> list[str]:
    """Kill `vqa-app chat` while it answers; return what is missing after it was started again."""
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        options = ["chat", "--model", model, "--data-dir", folder, "--no-browser"]
        with started(*options) as (process, address), httpx.Client(trust_env=False) as client:
            client.base_url, client.timeout = httpx.URL(address), httpx.Timeout(REQUEST_SECONDS)
            client.get("/")
            complete: dict[str, list[tuple[str, str]]] = {}
            for number in range(conversations):
                text = QUESTIONS[number % len(QUESTIONS)]
                view = _page_asks(client, {"question": f"{text} {number}"})[-1]["view"]
                complete[view["conversation"]] = _turns(view)
            asked = {"question": "Describe everything that you know ."}
            with client.stream("POST", "/vqa/requests/ask", json=asked) as response:
                for line in response.iter_lines():
                    if line.strip():
                        running = json.loads(line)["view"]["conversation"]
                        break
                process.kill()
            process.wait(REQUEST_SECONDS)
            cookies = client.cookies
        with (
            started(*options) as (process, address),
            httpx.Client(base_url=address, cookies=cookies, trust_env=False) as client,
        ):
            client.timeout = httpx.Timeout(REQUEST_SECONDS)
            for name, turns in complete.items():
                shown = client.post("/vqa/requests/act", json={"do": "open", "conversation": name})
                if not shown.is_success or _turns(_last_view(shown.text)) != turns:
                    faults.append(f"conversation {name} is not as it was: {shown.text[:200]}")
            shown = client.post("/vqa/requests/act", json={"do": "open", "conversation": running})
            if not shown.is_success or asked["question"] not in shown.text:
                faults.append(f"the question that was being answered is gone: {shown.text[:200]}")
    return faults


def _page_asks(client: httpx.Client, request: dict[str, Any]) -> list[dict[str, Any]]:
    text = client.post("/vqa/requests/ask", json=request).text
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _last_view(text: str) -> dict[str, Any]:
    updates = [json.loads(line) for line in text.splitlines() if line.strip()]
    return next(update["view"] for update in reversed(updates) if "view" in update)


def _turns(view: dict[str, Any]) -> list[tuple[str, str]]:
    return [(turn["question"], turn["answer"]) for turn in view["turns"]]


@contextmanager
def started(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start `vqa-app`, wait until it is ready, and end it after the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vqa_app", *options, "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None, "the server did not start"
        address = found[0]
        root = address.removesuffix("/v1").rstrip("/")
        with httpx.Client(trust_env=False, timeout=60) as client:
            while client.get(f"{root}/readyz").status_code != 200:
                assert process.poll() is None, "the server has ended"
                time.sleep(0.5)
        yield process, address
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()


def main() -> int:
    """Run the test and print its report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="builtin", help="builtin, a path or a hub id")
    parser.add_argument("--seconds", type=float, default=180, help="how long (default: 180)")
    parser.add_argument("--clients", type=int, default=64, help="how many (default: 64)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with started("serve", "--model", options.model) as (process, address):
        model = httpx.get(f"{address}/models", trust_env=False).json()["data"][0]["id"]
        report = LoadTest(
            address,
            model,
            options.clients,
            options.seconds,
            process=process.pid,
            schemas=_has_schemas(),
            seed=options.seed,
        ).run()
        print(report.text(options.seconds), flush=True)
    lost = kill_chat(options.model)
    print("chat killed and started again:", "; ".join(lost) or "nothing is lost")
    return 1 if report.faults or lost else 0


def _has_schemas() -> bool:
    from importlib.util import find_spec

    return find_spec("llguidance") is not None


if __name__ == "__main__":
    sys.exit(main())
