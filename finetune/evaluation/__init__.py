"""Questions with known answers: asking, scoring, reporting.

May use runs, data.
"""
