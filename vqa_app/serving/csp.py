"""What the browser may do with an answer: the headers, and the scripts that a page itself carries.

Gradio writes some scripts into its page, its configuration among them. Instead of letting every
inline script run, the policy names these by their hashes, so that a script that an answer
smuggles into the page stays dead, an event handler in its markup included. Only the page itself has
such scripts: in any other HTML that is sent from here, none runs. Two things cannot be
closed while the page stands on Gradio 6: `'unsafe-eval'`, because its HTML component makes
functions from strings in its configuration (only a script that runs already can evaluate), and
inline styles, which its components set everywhere.
"""

from __future__ import annotations

import base64
import hashlib
import re

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-eval'{inline}",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    )
)
_HEADERS = {
    "content-security-policy": _POLICY.format(inline=""),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_SCRIPT = re.compile(rb"<script\b([^>]*)>(.*?)</script>", re.DOTALL | re.IGNORECASE)


def policy_for(page: bytes) -> str:
    """The policy under which the inline scripts of this page run, and no others."""
    hashes = [
        base64.b64encode(hashlib.sha256(text).digest()).decode()
        for attributes, text in _SCRIPT.findall(page)
        if b"src=" not in attributes
    ]
    return _POLICY.format(inline="".join(f" 'sha256-{value}'" for value in hashes))


def guarded(send: Send, extra: dict[str, str], is_page: bool = False) -> Send:
    """`send` with the security headers, and `extra` ones on HTML only.

    The page is held back until it is whole: its policy depends on what is in it. (Gradio compresses
    files, never the page.)

    Args:
        is_page: whether the answer is our own page, whose scripts may run.
    """
    held: list[Message] = []  # the start of a page
    page = bytearray()

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            if headers.get("content-type", "").startswith("text/html"):
                for name, value in extra.items():
                    headers.append(name, value)
                if is_page:
                    held.append(message)
                    return
        elif held and message["type"] == "http.response.body":
            page.extend(message.get("body", b""))
            if message.get("more_body"):
                return
            start = held.pop()
            MutableHeaders(scope=start)["content-security-policy"] = policy_for(bytes(page))
            await send(start)
            message = {**message, "body": bytes(page)}
        await send(message)

    return sent
