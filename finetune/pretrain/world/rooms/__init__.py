"""The rooms of the world, each a kind of picture with its questions.

May use objects, wording, drawing.
"""
