"""Evaluation: questions with known answers, predictions, metrics and reports.

May import `runs` and `data`.
"""
