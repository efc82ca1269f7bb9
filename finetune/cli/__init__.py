"""The commands of fine-tuning: train, evaluate, merge, verify, and looking at data.

May use every other room of `finetune`.
"""
