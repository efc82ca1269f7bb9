"""All calls of this project into private parts of huggingface_hub.

Tried with huggingface_hub 2.4. Check every function here when the upper bound in `pyproject.toml`
moves.
"""

from __future__ import annotations

import shutil
from pathlib import Path


def abort_xet_session() -> None:
    """End all downloads of this process from the hub's Xet storage, even stalled ones."""
    from huggingface_hub.utils import _xet

    _xet.abort_xet_session()


def delete_repository(folder: Path, cache: Path) -> None:
    """Delete a repository from the hub's cache, with those shared files that no other one uses.

    `HFCacheInfo.delete_revisions` takes commits, which a copy of a repository has in common with
    it: it would delete either of the two.

    Raises:
        OSError: The folder cannot be deleted, or not completely.
    """
    from huggingface_hub.utils import _shared_blobs

    shared = [_shared_blobs.shared_blob_target(blob, cache) for blob in folder.glob("blobs/*")]
    try:
        shutil.rmtree(folder)
    finally:
        for file in shared:
            if file is not None:
                _shared_blobs.sweep_shared_blob(file, cache_dir=cache)
