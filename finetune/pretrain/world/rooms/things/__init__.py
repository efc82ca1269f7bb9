"""Drawings of everyday things."""
