"""Running a model: protocol, worker, forward passes, caches, sampling, attention maps.

May use checkpoints, prompts, models, pictures.
"""
