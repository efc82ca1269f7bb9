"""Conversations and pictures on disk.

Uses no other room of `ui`.
"""
