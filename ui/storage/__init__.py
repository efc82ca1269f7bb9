"""Conversations and pictures on disk.

Uses no other package of `ui`.
"""
