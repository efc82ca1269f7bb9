"""The recipe of the model in the box: a generated world, and the training on it.

May use training, evaluation, runs, data and kernels.
"""
