"""What any server of models needs: engine pool, model list, downloads, access control, redaction.

May use retrieval, engine, checkpoints, prompts, models and pictures.
"""
