"""The command line ``streams``.

Quick to start: a command imports what it needs when it runs, and no driver is imported before a
log is opened. Three exit statuses: 0 done, 1 failed, 2 the command itself cannot be; and one line
on standard error that says what was wrong, where, and what to do.
"""

from __future__ import annotations


def main() -> None:
    """Run the command that ``sys.argv`` says, and end the process."""
    import sys

    from streams.cli.root import run

    sys.exit(run(sys.argv[1:]))
