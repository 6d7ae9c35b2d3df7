"""The processor of the demo, as a program of its own that can be killed and restarted.

    python -m examples.flights.worker URL TOPIC EFFECTS

Every handled event becomes one line of the file EFFECTS, written at once: that is the effect in
the outside world, which a killed worker cannot take back.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from zlib import crc32

import msgspec

from examples.flights.events import Arrived, Cancelled, Departed, Event
from streams import Flow, Message, Retry, Streams, Topic

GROUP = "delays"
MEMBER = "worker-1"
PARTITIONS = 8
KINDS: dict[type, str] = {Departed: "departed", Arrived: "arrived", Cancelled: "cancelled"}


class Effect(msgspec.Struct, array_like=True, frozen=True):
    """The record that an event was handled, with the worker's process."""

    worker_pid: int
    sequence: int
    kind: str
    carrier: str
    tail_number: str | None
    delay_minutes: int


def build(
    url: str, name: str, effects: str, member: str | None = None
) -> tuple[Streams, Topic[Event]]:
    """The app: one topic keyed by aircraft, one processor with 64 handlers at once."""
    app = Streams(url, member=member)
    flights: Topic[Event] = app.topic(name, Event, key="tail_number", partitions=PARTITIONS)
    worker_pid = os.getpid()
    encode = msgspec.json.encode
    file = os.open(effects, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    @app.processor(
        flights,
        group=GROUP,
        concurrency=64,
        retry=Retry(attempts=5, delay=0.02, cap=0.1),
        flow=Flow(commit=0.05),
    )
    async def track(event: Event, message: Message[Event]) -> None:
        chance = crc32(message.id.encode()) % 200
        if chance < 20:
            await asyncio.sleep(0.002)  # a slow service
        if chance < 2 and message.attempt == 1:
            raise ConnectionError("a service that fails now and then")
        delay = event.delay_minutes if isinstance(event, Departed) else 0
        kind = KINDS[type(event)]
        effect = Effect(worker_pid, event.sequence, kind, event.carrier, event.tail_number, delay)
        os.write(file, encode(effect) + b"\n")

    return app, flights


def main() -> None:
    """Run until a signal."""
    logging.basicConfig(level=logging.ERROR, format="worker: %(message)s")
    url, name, effects = sys.argv[1:4]
    # A fixed member name, so that the next life gets its partitions back at once. (KIP-848 has no
    # static members that can be restarted.)
    member = None if "group.protocol=consumer" in url else MEMBER
    app, _ = build(url, name, effects, member)
    app.run()


if __name__ == "__main__":
    main()
