"""Instruction data: read from all supported formats, checked, split and tokenised.

Uses no other room of `finetune`.
"""
