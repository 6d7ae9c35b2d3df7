"""Beside clients that are not ours: what they write we read, what we write they read."""
