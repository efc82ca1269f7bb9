"""The commands of fine-tuning: train, evaluate, merge, verify, and inspect data.

May use every other room of `finetune`.
"""
