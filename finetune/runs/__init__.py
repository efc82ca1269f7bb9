"""Runs on disk: layout, checkpoints, golden prompts, verification, merging.

May use data and kernels.
"""
