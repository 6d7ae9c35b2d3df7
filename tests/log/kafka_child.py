"""A member in a process of its own, which a test stops and lets go on.

``python -m tests.log.kafka_child URL GROUP TOPIC`` prints one JSON list a line: what its listener
is told, and, from a thread that looks every few milliseconds as handlers would, whether it would
start a handler (``["certain", true]`` when that changes) and when it was not run for a while
(``["stopped", seconds, certain]``, told before anything else it does then). At that moment it
also tries to commit.

With ``again`` as a fourth argument it does not poll once it owns something (``["waiting"]``) until
it gets a line. Then, before it polls, it commits what the group has stored already, as an owner
does whose messages of the last second are not handled yet, and prints whether it would start a
handler (``["again", certain]``).
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence

from streams.errors import LogError
from streams.log.protocol import Assignment, Commit, Log
from streams.log.url import open_log

LOOK = 0.005
"""Seconds between two looks."""

LATE = 10_000
"""The position it tries to commit when it wakes up."""


class Watched:
    """The member, and the thread that looks at its ownership."""

    def __init__(self, log: Log, group: str, topic: str) -> None:
        self.owned: dict[int, Assignment] = {}
        self._lock = threading.Lock()
        self.subscription = log.subscribe(group, [topic], self)

    def say(self, *what: object) -> None:
        with self._lock:
            sys.stdout.write(json.dumps(what) + "\n")
            sys.stdout.flush()

    def assigned(self, assignments: Sequence[Assignment]) -> None:
        for each in assignments:
            each.position = each.committed.position if each.committed else 0
            self.owned[each.partition] = each
        self.say("assigned", [each.partition for each in assignments])

    def revoked(self, assignments: Sequence[Assignment]) -> None:
        self._forget("revoked", assignments)

    def lost(self, assignments: Sequence[Assignment]) -> None:
        self._forget("lost", assignments)

    def _forget(self, what: str, assignments: Sequence[Assignment]) -> None:
        for each in assignments:
            del self.owned[each.partition]
        self.say(what, [each.partition for each in assignments])

    def watch(self) -> None:
        last, told = time.monotonic(), False
        while True:
            time.sleep(LOOK)
            now, owned = time.monotonic(), list(self.owned.values())
            certain = any(now < each.valid_until for each in owned)
            if now - last > 1:
                self.say("stopped", now - last, certain)
                self._commit_late(owned)
            if certain != told:
                self.say("certain", certain)
            last, told = now, certain

    def _commit_late(self, owned: list[Assignment]) -> None:
        try:
            self.subscription.commit([Commit(each, LATE, "late", LATE) for each in owned])
        except LogError as error:
            self.say("refused", type(error).__name__)

    def commit_again(self) -> None:
        """Stand still, and then commit what is stored."""
        while not self.owned:
            self.subscription.poll(100, 0.1)
        self.say("waiting")
        sys.stdin.readline()
        owned = list(self.owned.values())
        stored = [(each, each.committed) for each in owned if each.committed is not None]
        try:
            self.subscription.commit([Commit(each, *found, LATE) for each, found in stored])
        except LogError as error:
            self.say("refused", type(error).__name__)
        self.say("again", any(time.monotonic() < each.valid_until for each in owned))

    def run(self) -> None:
        threading.Thread(target=self.watch, daemon=True).start()
        while True:
            for batch in self.subscription.poll(100, 0.1):
                self.say("messages", batch.partition, list(batch.offsets))


if __name__ == "__main__":
    watched = Watched(open_log(sys.argv[1]), *sys.argv[2:4])
    if "again" in sys.argv[4:]:
        watched.commit_again()
    watched.run()
