"""Find, check, load and compose models, on disk and on the Hugging Face hub.

May use prompts, models and pictures.
"""
