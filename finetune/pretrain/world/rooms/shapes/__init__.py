"""Coloured shapes."""
