"""Download a picture from a web address typed in the shell.

Only the shell may use this module. A server must not fetch addresses that its users name, because
they could reach into the server's own network.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from vqa_app.errors import ImageError
from vqa_app.pictures.picture import ImageLimits, Picture, open_picture
from vqa_app.proxies import proxy_problem
from vqa_app.version import __version__

if TYPE_CHECKING:
    import httpx

TIMEOUT = 15.0
"""Seconds to wait for a response or for more of its data."""
DEADLINE = 60.0
"""Seconds for the whole download."""
MAX_REDIRECTS = 5


def is_url(text: str) -> bool:
    """Return whether `text` has a scheme and a host, as file names hardly ever do."""
    scheme, colon, rest = text.partition("://")
    return bool(colon and scheme.isalnum() and rest)


def fetch_picture(
    url: str,
    limits: ImageLimits | None = None,
    *,
    timeout: float = TIMEOUT,
    deadline: float = DEADLINE,
) -> Picture:
    """Download a picture; its type is determined from its content, not from the server's headers.

    Args:
        url: An http or https address. Redirects to other schemes are not followed.
        limits: The largest file and the most pixels to accept.
        timeout: Seconds to wait for a response or for more of its data.
        deadline: Seconds for the whole download.

    Raises:
        ImageError: The address is not supported or does not respond, or what it returns is not a
            picture or too large, or a proxy in the environment cannot be used.
    """
    import httpx

    if problem := proxy_problem():
        raise ImageError(*problem)
    limits = limits or ImageLimits()
    end = time.monotonic() + deadline
    headers = {"User-Agent": f"vqa-app/{__version__}", "Accept": "image/*"}
    client = httpx.Client(
        timeout=timeout,
        headers=headers,
        follow_redirects=True,
        max_redirects=MAX_REDIRECTS,
        event_hooks={"request": [lambda request: _check_scheme(str(request.url))]},
    )
    try:
        _check_scheme(url)
        with client, client.stream("GET", url) as response:
            url = str(response.url)  # after redirects
            data = _read(response, url, limits.max_bytes, end)
    except httpx.TimeoutException as error:
        raise _too_slow(url) from error
    except httpx.TooManyRedirects as error:
        raise ImageError(
            f"{_host(url)} redirects more than {MAX_REDIRECTS} times.",
            "Download the picture in a browser and use the file.",
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        reason = str(error).rstrip(".") or type(error).__name__
        raise ImageError(
            f"Could not reach {_host(url)}: {reason}.", "Check the address and the network."
        ) from error
    return open_picture(data, name=_name(url), limits=limits)


def _read(response: httpx.Response, url: str, max_bytes: int, end: float) -> bytes:
    if response.status_code != 200:
        status = f"{response.status_code} {response.reason_phrase}".strip()
        raise ImageError(
            f"{_host(url)} responded with {status}.",
            "Open the address in a browser and download the picture there.",
        )
    data = bytearray()
    for piece in response.iter_bytes():
        data += piece
        if len(data) > max_bytes:
            raise ImageError(
                f"The file at {_host(url)} is larger than {max_bytes / 2**20:.3g} MB.",
                "Download it and reduce its size.",
            )
        if time.monotonic() > end:
            raise _too_slow(url)
    return bytes(data)


def _check_scheme(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme.lower() not in ("http", "https"):
        raise ImageError(
            f"Cannot download pictures from {parts.scheme}:// addresses.",
            "Use a file or an http(s) address.",
        )
    if not parts.hostname:
        raise ImageError(f"{url[:80]!r} has no host name.", "Check the address.")


def _too_slow(url: str) -> ImageError:
    return ImageError(
        f"{_host(url)} did not send the picture in time.", "Try again, or use a file."
    )


def _host(url: str) -> str:
    """Return only the host for messages: the address may contain a password or a token."""
    try:
        return urlsplit(url).hostname or url[:80]
    except ValueError:
        return url[:80]


def _name(url: str) -> str:
    return unquote(urlsplit(url).path.rsplit("/", 1)[-1]) or _host(url)
