"""``python -m streams.cli``: the command ``streams``, where it is not on the path."""

from streams.cli import main

main()
