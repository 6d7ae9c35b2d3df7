"""Faults on real logs: processes killed, frozen and cut off, and a checker of what they left."""
