"""Conversations, and how a chat template and pictures turn them into model inputs.

May use the rooms models and pictures.
"""
