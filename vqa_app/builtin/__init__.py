"""The model in the box: a LLaVA checkpoint as plain transformers reads it, and its MODEL_CARD.md.

`vqa_app.checkpoints.loader` finds the files by this package's path. `finetune.pretrain` makes them.
"""
