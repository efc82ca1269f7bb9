"""What an architecture is made of and what it allows.

Uses no other room.
"""
