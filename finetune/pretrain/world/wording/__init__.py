"""Wording: templates, references to objects, false premises, small talk.

May use drawing.
"""
