"""What every server of models needs: engine pool, model list, downloads, guards, redaction.

May use engine, checkpoints, prompts, models, pictures.
"""
