"""The commands of fine-tuning: train, evaluate, merge, verify, and inspect data.

May import every other folder of `finetune`.
"""
