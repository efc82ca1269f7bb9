"""Instruction data of every published layout, read into rows and checked before training.

Uses no other room of `finetune`.
"""
