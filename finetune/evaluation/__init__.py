"""Evaluation: questions with known answers, predictions, metrics and reports.

May use runs, data and kernels.
"""
