"""The command line ``streams``.

Quick to start: a command imports its dependencies when it runs, and no driver is imported before a
log is opened. There are three exit statuses: 0 done, 1 failed, 2 invalid usage; and one line
on standard error that says what was wrong, where, and what to do.
"""

from __future__ import annotations


def main() -> None:
    """Run the command in ``sys.argv``, and end the process."""
    import sys

    from streams.cli.root import run

    sys.exit(run(sys.argv[1:]))
