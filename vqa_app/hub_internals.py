"""All calls of this project into private parts of huggingface_hub.

Tried with huggingface_hub 2.4. Check every function here when the upper bound in `pyproject.toml`
moves.
"""

from __future__ import annotations


def abort_xet_session() -> None:
    """End all downloads of this process from the hub's Xet storage, even stalled ones."""
    from huggingface_hub.utils import _xet

    _xet.abort_xet_session()
