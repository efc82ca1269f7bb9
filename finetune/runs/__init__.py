"""What a run leaves on disk: layout, checkpoints, golden outputs, merging.

May use kernels.
"""
