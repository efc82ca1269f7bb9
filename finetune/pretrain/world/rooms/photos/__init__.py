"""Photographs of everyday things."""
