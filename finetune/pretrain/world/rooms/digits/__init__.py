"""Digits, dice, sums."""
