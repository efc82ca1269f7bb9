"""Download a picture from a web address.

`fetch_picture` is for the shell alone: a server must not fetch what its visitors name, because they
could reach into the server's own network. `fetch_for_visitor` is for servers: it fetches from hosts
that the operator allows, and from public addresses only.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from vqa_app.errors import ImageError, UsageError
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
_PORTS = {"http": 80, "https": 443}
_HEADERS = {"User-Agent": f"vqa-app/{__version__}", "Accept": "image/*"}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


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
    limits = limits or ImageLimits()
    data, name = fetch_file(url, limits.max_bytes, timeout=timeout, deadline=deadline)
    return open_picture(data, name=name, limits=limits)


def fetch_file(
    url: str, max_bytes: int, *, timeout: float = TIMEOUT, deadline: float = DEADLINE
) -> tuple[bytes, str]:
    """Download a file, and return its content and name; see `fetch_picture`."""
    import httpx

    if problem := proxy_problem():
        raise ImageError(*problem)
    end = time.monotonic() + deadline
    client = httpx.Client(
        timeout=timeout,
        headers=_HEADERS,
        follow_redirects=True,
        max_redirects=MAX_REDIRECTS,
        event_hooks={"request": [lambda request: _check_scheme(str(request.url))]},
    )
    try:
        _check_scheme(url)
        with client, client.stream("GET", url) as response:
            url = str(response.url)  # after redirects
            data = _read(response, url, max_bytes, end)
    except httpx.TimeoutException as error:
        raise _too_slow(url) from error
    except httpx.TooManyRedirects as error:
        raise _too_many_redirects(url) from error
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise _unreachable(url, error) from error
    return data, _name(url)


def fetch_for_visitor(
    url: str,
    hosts: Collection[str],
    max_bytes: int,
    *,
    timeout: float = TIMEOUT,
    deadline: float = DEADLINE,
) -> tuple[bytes, str]:
    """Download a file that a visitor of a server named, from an allowed host.

    Every redirect is checked like the address itself. The host's name is resolved once, and the
    connection goes to the address that was checked, so that a name cannot change its address in
    between. Proxies in the environment are not used, because they would resolve the name again.

    Args:
        url: An http or https address.
        hosts: The allowed hosts, in lower case; with a port (`host:8080`) only if it is not the
            scheme's own.
        max_bytes: Size of the largest file.
        timeout: Seconds to wait for a response or for more of its data.
        deadline: Seconds for the whole download.

    Returns:
        The file's content, and its name.

    Raises:
        ImageError: The address is not allowed or does not respond, or the file is too large.
    """
    import httpx

    end = time.monotonic() + deadline
    try:
        with httpx.Client(timeout=timeout, headers=_HEADERS, trust_env=False) as client:
            for _ in range(1 + MAX_REDIRECTS):
                target = _allowed(url, hosts)
                with _connected(client, target, end) as response:
                    if response.has_redirect_location:
                        url = str(target.join(response.headers["location"]))
                        continue
                    return _read(response, url, max_bytes, end), _name(url)
    except httpx.TimeoutException as error:
        raise _too_slow(url) from error
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        raise _unreachable(url, error) from error
    raise _too_many_redirects(url)


def allowed_host(entry: str) -> str:
    """Return an entry of an operator's list of hosts as `fetch_for_visitor` takes it.

    Raises:
        UsageError: It is not a host name with an optional port.
    """
    host = entry.strip().lower()
    if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?", host):
        raise UsageError(f"{entry!r} is not a host name.", "Write it like images.example.com.")
    return host


def _allowed(url: str, hosts: Collection[str]) -> httpx.URL:
    """Return an address that a visitor named.

    Raises:
        ImageError: Its scheme, host or port is not allowed.
    """
    import httpx

    _check_scheme(url)
    target = httpx.URL(url.strip())  # its parser decides, since it also connects
    host = target.raw_host.decode("ascii").lower()
    if target.port not in (None, _PORTS.get(target.scheme)):
        host += f":{target.port}"
    if target.scheme not in _PORTS or target.userinfo or host not in hosts:
        raise ImageError(
            f"Pictures from {host} are not allowed here.", "Download the picture and add the file."
        )
    return target


@contextmanager
def _connected(client: httpx.Client, target: httpx.URL, end: float) -> Iterator[httpx.Response]:
    """Send a request to the first public address of a host that can be reached."""
    import httpx

    host = target.raw_host.decode("ascii")
    addresses = _public_addresses(host, target.port or _PORTS[target.scheme])
    for address in addresses:
        if time.monotonic() > end:
            raise _too_slow(str(target))
        request = client.build_request(
            "GET",
            target.copy_with(host=address),
            headers={"Host": target.netloc.decode("ascii")},
            extensions={"sni_hostname": host},  # which certificate is expected
        )
        try:
            response = client.send(request, stream=True)
        except httpx.ConnectError:
            if address == addresses[-1]:
                raise
            continue
        try:
            yield response
        finally:
            response.close()
        return


def _public_addresses(host: str, port: int) -> list[str]:
    """Return the addresses of a host.

    Raises:
        ImageError: One of them is not public.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not all(is_public(address) for address in addresses):
        raise ImageError(
            f"{host} is in a private network.", "Download the picture and add the file."
        )
    return addresses


def is_public(address: str) -> bool:
    """Return whether an IP address is reachable for everybody, and so is nothing of our own."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if found.teredo:
            return False
    return found.is_global and not found.is_multicast


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


def _unreachable(url: str, error: Exception) -> ImageError:
    import httpx

    reasons: tuple[tuple[type[BaseException], str], ...] = (  # the most specific first
        (socket.gaierror, "its name is not known"),
        (ssl.SSLCertVerificationError, "its certificate is not valid"),
        (ssl.SSLError, "no encrypted connection could be made"),
        (ConnectionRefusedError, "it refuses connections"),
        (ConnectionError, "it closed the connection"),
        (httpx.ProxyError, "the proxy refuses the connection"),
        (httpx.ProtocolError, "it does not speak HTTP"),
        (httpx.InvalidURL, "the address is not valid"),
        (ValueError, "the address is not valid"),
    )
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    found = (words for kind, words in reasons if any(isinstance(one, kind) for one in chain))
    reason = next(found, "the connection failed")
    return ImageError(
        f"Could not reach {_host(url)}: {reason}.", "Check the address and the network."
    )


def _too_many_redirects(url: str) -> ImageError:
    return ImageError(
        f"{_host(url)} redirects more than {MAX_REDIRECTS} times.",
        "Download the picture in a browser and use the file.",
    )


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
