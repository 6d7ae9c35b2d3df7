"""A writer of documents in a process of its own, which a test stops, kills and lets go on.

``python -m tests.log.kafka_documents_child URL COLLECTION`` writes checkpoint 1, says ``written``,
and begins a second write. All of that is in the log but its end: it says ``open`` and waits for a
line; then it goes on, and says how that ended.
"""

from __future__ import annotations

import sys

from confluent_kafka import Producer

from streams.errors import LogError
from streams.log.documents import Checkpoint, DocumentChange, StoredDocument
from streams.log.kafka.document_writer import KafkaDocumentWriter
from streams.log.kafka.log import KafkaLog
from streams.log.url import open_log


def say(what: str) -> None:
    sys.stdout.write(what + "\n")
    sys.stdout.flush()


def main(url: str, collection: str) -> None:
    commit = KafkaDocumentWriter._commit

    def commit_when_told(self: KafkaDocumentWriter, producer: Producer, deadline: float) -> None:
        say("open")
        sys.stdin.readline()
        commit(self, producer, deadline)

    log = open_log(url)
    assert isinstance(log, KafkaLog)
    writer = log.documents.claim(collection, 0)
    writer.write([DocumentChange(b"a", StoredDocument(b"1"))], Checkpoint(1))
    say("written")
    KafkaDocumentWriter._commit = commit_when_told  # type: ignore[method-assign]
    try:
        writer.write([DocumentChange(b"a", StoredDocument(b"stale"))], Checkpoint(2))
    except LogError as error:
        say(f"{type(error).__name__}: {error}")
    else:
        say("written")


if __name__ == "__main__":
    main(*sys.argv[1:])
