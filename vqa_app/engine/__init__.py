"""Running a model: interface, scheduler, forward passes, caches, sampling, attention maps.

May use checkpoints, prompts, models and pictures.
"""
