"""Questions about objects: appearance, presence, position, comparison, description.

May use wording, drawing.
"""
