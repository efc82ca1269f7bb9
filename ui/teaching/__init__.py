"""Taught rows, uploads, and training from the page.

May use chat, storage.
"""
