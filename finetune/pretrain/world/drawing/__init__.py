"""Drawing: paint, letters, hand-drawn lines.

Uses no other room of the world.
"""
