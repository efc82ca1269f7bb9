"""Running a model: interface, worker thread, forward passes, caches, sampling, attention maps.

May use checkpoints, prompts, models and pictures.
"""
