"""Bytes in words. Decimal, as disks and download pages count: 1 GB is 10⁹ bytes."""

from __future__ import annotations


def in_words(size: float) -> str:
    """`14 MB`, `520 MB`, `1.8 GB`."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
