"""What a model architecture consists of and what it allows.

May use pictures.
"""
