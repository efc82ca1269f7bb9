"""Questions about objects: colour, count, position, presence, comparison, description.

May use wording, drawing.
"""
