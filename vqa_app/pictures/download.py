"""Fetches a picture from a web address that the person at the shell typed.

For the shell alone: nothing that serves other people may call this, or they could make the server
reach into its own network.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.parse import unquote, urljoin, urlsplit

from vqa_app.errors import ImageError
from vqa_app.pictures.picture import ImageLimits, Picture, open_picture
from vqa_app.version import __version__

if TYPE_CHECKING:
    import httpx

TIMEOUT = 15.0
"""Seconds without an answer or between two pieces of one."""
DEADLINE = 60.0
"""Seconds in all."""
MAX_REDIRECTS = 5


def is_url(text: str) -> bool:
    """Whether `text` has a scheme and a host: a file would hardly be called that."""
    scheme, colon, rest = text.partition("://")
    return bool(colon and scheme.isalnum() and rest)


def fetch_picture(
    url: str,
    limits: ImageLimits | None = None,
    *,
    timeout: float = TIMEOUT,
    deadline: float = DEADLINE,
) -> Picture:
    """Downloads a picture; what it is, its content says, not the server.

    Args:
        url: http or https; redirects to anything else are not followed.
        limits: largest download and most pixels.
        timeout: seconds without an answer or between two pieces of one.
        deadline: seconds in all.

    Raises:
        ImageError: no such scheme, no answer, not a picture, too large.
    """
    import httpx

    limits = limits or ImageLimits()
    ends = time.monotonic() + deadline
    headers = {"User-Agent": f"vqa-app/{__version__}", "Accept": "image/*"}
    try:
        with httpx.Client(timeout=timeout, headers=headers) as client:
            for _ in range(MAX_REDIRECTS + 1):
                _check_scheme(url)
                with client.stream("GET", url) as response:
                    if response.has_redirect_location:
                        url = urljoin(url, response.headers["location"])
                        continue
                    data = _read(response, url, limits.max_bytes, ends)
                    return open_picture(data, name=_name(url), limits=limits)
    except httpx.TimeoutException as error:
        raise _too_slow(url) from error
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        reason = str(error).rstrip(".") or type(error).__name__
        raise ImageError(
            f"{_host(url)} could not be reached: {reason}.", "Check the address and the network."
        ) from error
    raise ImageError(
        f"{_host(url)} redirects more than {MAX_REDIRECTS} times.",
        "Download the picture in a browser and give the file.",
    )


def _read(response: httpx.Response, url: str, max_bytes: int, ends: float) -> bytes:
    if response.status_code != 200:
        status = f"{response.status_code} {response.reason_phrase}".strip()
        raise ImageError(
            f"{_host(url)} answered {status}.",
            "Open the address in a browser and download the picture there.",
        )
    data = bytearray()
    for piece in response.iter_bytes():
        data += piece
        if len(data) > max_bytes:
            raise ImageError(
                f"The file at {_host(url)} is larger than {max_bytes / 2**20:.3g} MB.",
                "Download it and save it smaller.",
            )
        if time.monotonic() > ends:
            raise _too_slow(url)
    return bytes(data)


def _check_scheme(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme.lower() not in ("http", "https"):
        raise ImageError(
            f"Pictures are not fetched by {parts.scheme}://.", "Give a file or an http(s) address."
        )
    if not parts.hostname:
        raise ImageError(f"{url[:80]!r} names no host.", "Check the address.")


def _too_slow(url: str) -> ImageError:
    return ImageError(
        f"{_host(url)} did not send the picture in time.", "Try again, or give a file."
    )


def _host(url: str) -> str:
    """The host alone: a whole address may hold a password or a token."""
    try:
        return urlsplit(url).hostname or url[:80]
    except ValueError:
        return url[:80]


def _name(url: str) -> str:
    return unquote(urlsplit(url).path.rsplit("/", 1)[-1]) or _host(url)
