"""Drawing: colours, backgrounds, lettering, sketches of things.

Uses no other folder of the world.
"""
