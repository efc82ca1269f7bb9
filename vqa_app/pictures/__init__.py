"""Pictures from files, bytes and addresses: checked, upright, RGB.

Uses no other room.
"""
