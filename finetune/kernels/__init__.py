"""Faster forward and backward passes for training on CPUs.

Uses no other room of `finetune`.
"""
