"""Models on disk and on the hub: finding, checking, loading, composing them.

May use prompts, models, pictures.
"""
