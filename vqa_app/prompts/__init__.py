"""Conversations, and how a chat template and images turn them into model inputs.

May use models, pictures.
"""
