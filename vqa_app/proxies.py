"""Proxies in the environment: unusable ones are reported, or left aside where no network is used.

httpx, which also huggingface_hub and Gradio use, reads the proxies whenever it makes a client, and
raises several types of errors if it cannot use them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_VARIABLES = ("all_proxy", "https_proxy", "http_proxy", "no_proxy")


def proxy_problem() -> tuple[str, str] | None:
    """Return what is wrong with the proxies and what to do, or None if they can be used.

    The message names the variables but not their values, which may contain a password.
    """
    import httpx

    try:
        httpx.Client(verify=False).close()  # nothing is sent
    except ImportError:
        return (
            f"A SOCKS proxy is set in {_names('socks')}, which needs the package socksio.",
            "Run `pip install 'httpx[socks]'`, or unset the variable.",
        )
    except (httpx.InvalidURL, ValueError):
        return (
            f"The proxy settings in {_names()} cannot be used.",
            "Write http://, https:// or socks5:// addresses, and host names in NO_PROXY.",
        )
    return None


def _names(start: str = "") -> str:
    """Return the names of the variables whose values have this start."""
    found = {
        name.upper()
        for name, value in os.environ.items()
        if name.lower() in _VARIABLES and value.strip().lower().startswith(start)
    }
    return ", ".join(sorted(found)) or "the system"


@contextmanager
def without_proxies() -> Iterator[None]:
    """Make new clients of this process ignore all proxies while the block runs."""
    names = ("no_proxy", "NO_PROXY")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "*"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
