"""Training: from rows to a finished run, step by step.

May use evaluation, runs, data and kernels.
"""
