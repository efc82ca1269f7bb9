"""Pictures from files, bytes and web addresses, checked and normalised to upright RGB.

Uses no other room.
"""
