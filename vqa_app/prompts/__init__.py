"""Conversations, and how a chat template and pictures turn them into model inputs.

May use models and pictures.
"""
