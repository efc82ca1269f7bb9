"""Finding pictures by words: two-tower models.

May use engine, checkpoints, prompts, models and pictures.
"""
