"""The recipe of the model in the box: a generated world, and the training on it."""
