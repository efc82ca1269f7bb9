"""Instruction data: read from all supported formats, checked, split and tokenised.

Imports no other folder of `finetune`.
"""
