"""The built-in model: a LLaVA checkpoint that plain transformers loads, with its MODEL_CARD.md.

`vqa_app.checkpoints.source` finds the files by the path of this package. `finetune.pretrain` makes
them.
"""
