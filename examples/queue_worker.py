"""A queue worker: mails that are sent at once, at the second attempt, later, or never.

    python examples/queue_worker.py                           # on a file, mails.db
    python examples/queue_worker.py redis://localhost:6379/0  # on any other log
    streams dead ls mails mails --name lost-mails --url sqlite:///mails.db

It publishes four mails, works until each of them was handled, and stops. The last command shows
the mails that could not be sent.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys

import msgspec

from streams import Streams, StreamsError
from streams.patterns import (
    ConsumerConfig,
    DeadLetter,
    DeadLetterManager,
    MessageConsumer,
    MessageQueue,
    QueueMessage,
)

LOST = "lost-mails"

CONFIG = ConsumerConfig(concurrency=8, max_retries=2, retry_delay=0.2, dead_letter_queue=LOST)


class Mail(msgspec.Struct, frozen=True):
    """A mail to be sent."""

    to: str
    text: str


async def run(url: str) -> None:
    app = Streams(url)
    queue = MessageQueue(app, partitions=4)
    queue.declare("mails", Mail)
    letters = DeadLetterManager(app, LOST)
    sent: set[str] = set()

    async def send(message: QueueMessage[Mail]) -> None:
        """Handle a message: if this raises, it is retried later, and becomes a dead letter in the
        end."""
        mail = message.data
        if mail.to == "nobody":
            raise LookupError("there is no such mailbox")
        if mail.to == "bob" and message.retries == 0:
            raise ConnectionError("the mail server is busy")
        print(f"{mail.to}: sent at attempt {message.retries + 1}: {mail.text}")
        sent.add(message.id)

    async with app:
        consumer = MessageConsumer(queue, CONFIG)
        await consumer.start("mails", send)
        ids = {
            await queue.publish("mails", Mail("ada", "welcome")),
            await queue.publish("mails", Mail("bob", "welcome")),
            await queue.publish("mails", Mail("nobody", "welcome")),
            await queue.publish("mails", Mail("eve", "a second has passed"), delay=1),
        }
        lost: list[DeadLetter] = []
        while not ids <= sent | {letter.id for letter in lost}:
            await asyncio.sleep(0.1)
            lost = await letters.get_dead_letters(filter=lambda letter: letter.id in ids)
        await consumer.stop()  # finishes what is in flight; nothing runs after it
    for letter in lost:
        mail = letter.original_message.value
        print(f"{mail.to}: given up after {letter.retry_count} retries: {letter.error}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Four mails through a queue.")
    parser.add_argument("url", nargs="?", default="sqlite:///mails.db", help="the log")
    # Failures are retried or printed at the end, and need no log lines.
    logging.basicConfig(level=logging.CRITICAL)
    try:
        asyncio.run(run(parser.parse_args().url))
    except StreamsError as error:
        print(f"queue_worker: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
