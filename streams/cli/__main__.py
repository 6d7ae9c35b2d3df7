"""``python -m streams.cli``: the command ``streams``, if it is not on the path."""

from streams.cli import main

main()
