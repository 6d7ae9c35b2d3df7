"""A process that kills itself in the middle of a block of ``app.transaction()``.

``python -m tests.app.transaction_child URL POINT TIMES``: each block writes a number into a table
and publishes it; the numbers of blocks that have ended are printed. At the ``TIMES``-th time that
it comes by the point, it ends with SIGKILL. The points are around what the log does for a block,
put there from outside: ``execute.after``, ``append.after``, ``commit.before`` and
``commit.after``, when the log has committed and nobody knows of it yet.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

from streams import Streams, Topic

POINTS = ("execute.after", "append.after", "commit.before", "commit.after")


def build(url: str) -> tuple[Streams, Topic[int]]:
    """The app and its topic."""
    app = Streams(url)
    return app, app.topic("numbers", int, partitions=2)


def install(log: Any, point: str, times: int) -> None:
    """Die when a point is come by for the so-manieth time."""
    method, _, when = point.partition(".")
    begin = log.begin_file_transaction
    left = times

    def pass_by() -> None:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    def beginning() -> Any:
        transaction = begin()
        inner = getattr(transaction, method)

        def wrapped(*arguments: Any) -> Any:
            if when == "before":
                pass_by()
            result = inner(*arguments)
            if when == "after":
                pass_by()
            return result

        setattr(transaction, method, wrapped)
        return transaction

    log.begin_file_transaction = beginning


async def main(url: str, point: str, times: int) -> None:
    app, numbers = build(url)
    async with app.connected():
        async with app.transaction() as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS placed (number INTEGER PRIMARY KEY)")
            ((first,),) = connection.execute("SELECT coalesce(max(number), -1) + 1 FROM placed")
        install(app.log, point, times)
        for number in range(first, first + 1000):
            async with app.transaction() as connection:
                connection.execute("INSERT INTO placed VALUES (?)", (number,))
                await numbers.publish(number, key=str(number))
            print(number, flush=True)  # noqa: T201 - the test reads it


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
