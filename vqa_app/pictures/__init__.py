"""Pictures from files, bytes, documents and web addresses, checked and normalised to upright RGB.

Uses no other room.
"""
