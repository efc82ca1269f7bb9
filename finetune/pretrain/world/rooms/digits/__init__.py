"""Handwritten digits, displays, dice, dominoes and small sums."""
