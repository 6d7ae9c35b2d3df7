"""Processes that are killed: ``python -m tests.outbox.child write|relay DSN URL SEED``.

A writer has threads, each with keys of its own. In each transaction one writes into the books and
publishes the same; some are rolled back, some take their time before they commit. A number of a key
is begun after the one before it was committed, so they are to come in their order.
"""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from typing import Any

from streams import Streams
from streams.outbox import Outbox
from tests.outbox.world import Order, Place

TOPIC = "orders"
PARTITIONS = 4
WRITERS = 3
"""Threads of a writing process."""
LEASE = 1.0
PER_TRANSACTION = 3

BOOKS = "CREATE TABLE IF NOT EXISTS books (id varchar(40), number integer)"


def shop(dsn: str, url: str) -> tuple[Streams, Any, Outbox]:
    """The app, its topic and its outbox, as every process has them."""
    app = Streams(url)
    orders = app.topic(TOPIC, Order, key="id", partitions=PARTITIONS)
    return app, orders, Outbox(app, dsn, lease=LEASE, poll=0.2, batch=100, relayed_by="command")


def write(dsn: str, url: str, seed: int) -> None:
    """Write until killed, as long as standard input is open."""
    _, orders, outbox = shop(dsn, url)
    stopped = threading.Event()
    threads = [
        threading.Thread(target=_write, args=(dsn, orders, outbox, f"{seed}-{each}", stopped))
        for each in range(WRITERS)
    ]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stopped.set()
    for thread in threads:
        thread.join()


def _write(dsn: str, orders: Any, outbox: Outbox, name: str, stopped: threading.Event) -> None:
    place, chance = Place(dsn), random.Random(f"{name} {time.monotonic()}")
    mark = "%s" if place.is_postgres else "?"
    connection = place.connect()
    numbers = dict(connection.execute("SELECT id, max(number) FROM books GROUP BY id").fetchall())
    connection.commit()
    while not stopped.is_set():
        key = f"{name}-{chance.randrange(2)}"
        first = numbers.get(key, 0) + 1
        written = range(first, first + chance.randint(1, PER_TRANSACTION))
        rolled_back = chance.random() < 0.2
        for number in written:
            value = -number if rolled_back else number
            if not rolled_back:
                connection.execute(f"INSERT INTO books VALUES ({mark}, {mark})", (key, number))
            outbox.publish_sync(orders, Order(key, value), connection=connection)
        if place.is_postgres and chance.random() < 0.2:
            time.sleep(chance.random() * 0.3)  # SQLite would let nobody else write meanwhile
        if rolled_back:
            connection.rollback()
        else:
            connection.commit()
            numbers[key] = written[-1]
        time.sleep(chance.random() * 0.02)
    connection.close()


async def relay(dsn: str, url: str) -> None:
    """Relay until killed, as long as standard input is open."""
    app, _, outbox = shop(dsn, url)
    async with app.connected():
        task = asyncio.create_task(outbox.relay())
        await asyncio.to_thread(sys.stdin.read)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


if __name__ == "__main__":
    role, dsn, url, seed = sys.argv[1:]
    if role == "write":
        write(dsn, url, int(seed))
    else:
        asyncio.run(relay(dsn, url))
