"""Storing positions: never backwards, never two at a time, never waiting without end.

Of the driver's commits, the synchronous one has no deadline (while a broker is frozen it does not
return), and the asynchronous one tells its end only inside ``poll``, which nobody can call where a
revocation waits for its last commit. So a commit is sent asynchronously, and then the places are
read back, which has a deadline: both go to the coordinator over one connection, which answers in
order, so what is read is what the commit did.

A *submit* is sent the same way, and nobody waits: the driver tells its end in a later poll. Where
one is followed by a commit that is waited for, it is read back first; if it is not there, it was
refused, and should it land late all the same, the newest is sent once more.

A commit that could not be read back is *perhaps* stored, now or when the driver tries again, and
the next one must not overtake it: until its end is known, the next says
:class:`~streams.errors.Unavailable`. What was sent once is never followed by something older; and
should the driver tell that an old one landed late, the newest is sent once more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from streams.errors import Unavailable
from streams.log.protocol import Answered, Assignment, Commit, Committed
from streams.text import get_logger

logger = get_logger("streams.kafka")

Key = tuple[str, int]
Send = Callable[[list[TopicPartition]], None]
Read = Callable[[Sequence[Key]], Mapping[Key, "Committed | None"]]

INSISTS = 3.0
"""Seconds for which a commit that is refused is tried again: the driver ends a rebalance by itself
meanwhile, and learns the generation under which it is taken."""

PAUSE = 0.1
"""Seconds between two tries."""

FORGOTTEN = 120.0
"""Seconds after which the driver has surely given up a commit, if it never tells."""


class Gone(Exception):
    """This member is none any more: what it commits counts for nothing."""


class _Place:
    """What is known of one assignment's place."""

    __slots__ = ("assignment", "latest", "sent", "stored")

    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self.stored = -1
        """The newest version that is stored for certain."""
        self.sent = -1
        """The newest version that was handed to the driver."""
        self.latest: Committed | None = None
        """The place of that version."""


class Commits:
    """The commits of one subscription.

    :param send: the driver's asynchronous commit.
    :param read: the group's places; raises LogError, or :class:`Gone`.
    :param member: the member's ID, which changes when the coordinator gave it up.
    """

    def __init__(self, send: Send, read: Read, member: Callable[[], str | None]) -> None:
        self._send = send
        self._read = read
        self._member = member
        self._lock = threading.Lock()
        self._places: dict[Key, _Place] = {}
        self._sent: dict[Key, Committed] = {}
        """The places of the commit whose end is not known."""
        self._versions: dict[Key, tuple[_Place, int]] = {}
        self._since = 0.0
        self._answered: Answered | None = None
        """Whom to tell of that commit, if it is a submit."""

    def owns(self, assignments: Iterable[Assignment]) -> None:
        """These may be committed from now on."""
        with self._lock:
            for assignment in assignments:
                self._places[assignment.topic, assignment.partition] = _Place(assignment)

    def disowns(self, assignments: Iterable[Assignment]) -> None:
        """These may not be any more; waits for a commit that is being made."""
        with self._lock:
            for assignment in assignments:
                key = (assignment.topic, assignment.partition)
                found = self._places.get(key)
                if found is not None and found.assignment is assignment:
                    del self._places[key]

    def commit(self, commits: Iterable[Commit]) -> bool:
        """Store what is newer than what was stored, of what is owned; whether there was any.

        :raises Unavailable: nothing is known to be stored.
        :raises Gone: nothing was stored, and nothing will be.
        :raises KafkaException: the driver did not take it.
        """
        with self._lock:
            newest = self._newest(commits)
            if not newest:
                return False
            self._settle()
            self._make(self._begin(newest))
            return True

    def submit(self, commits: Iterable[Commit], answered: Answered) -> bool:
        """Send the same, and tell ``answered`` in a later poll or commit whether it is stored.
        False: nothing was sent, as nothing is newer or the one before has not ended.

        :raises KafkaException: the driver did not take it.
        """
        with self._lock:
            newest = self._newest(commits)
            if not newest or self._sent:
                return False
            places = self._begin(newest)
            self._sent, self._since = places, time.monotonic()
            try:
                self._send(_parts(places))
            except BaseException:
                self._sent, self._versions = {}, {}
                raise
            self._answered = answered
            return True

    def _newest(self, commits: Iterable[Commit]) -> dict[Key, Commit]:
        """What is newer than what was stored, of what is owned."""
        newest: dict[Key, Commit] = {}
        for commit in commits:
            key = (commit.assignment.topic, commit.assignment.partition)
            place = self._places.get(key)
            if place is None or place.assignment is not commit.assignment:
                continue
            floor = newest[key].version if key in newest else place.stored
            if commit.version > floor and commit.version >= place.sent:
                newest[key] = commit
        return newest

    def _begin(self, newest: Mapping[Key, Commit]) -> dict[Key, Committed]:
        """These are about to be sent."""
        self._versions = {key: (self._places[key], each.version) for key, each in newest.items()}
        places = {k: Committed(each.position, each.progress) for k, each in newest.items()}
        for key, (place, version) in self._versions.items():
            place.sent, place.latest = version, places[key]
        return places

    def place(self, places: Mapping[Key, Committed]) -> None:
        """Store places of partitions that are just between two assignments.

        :raises Unavailable: nothing is known to be stored.
        """
        with self._lock:
            self._settle()
            self._versions = {}
            self._make(places)

    def _make(self, places: Mapping[Key, Committed]) -> None:
        """Commit; a coordinator in a rebalance refuses, so it is asked again for a while."""
        member, start = self._member(), time.monotonic()
        self._sent, self._since = dict(places), start
        while True:
            self._send(_parts(places))
            if self._seen():
                return
            if self._member() != member or not member:
                raise Gone
            if time.monotonic() > start + INSISTS:
                raise Unavailable(
                    "the coordinator did not take the positions (a rebalance, most likely)"
                )
            time.sleep(PAUSE)

    def _settle(self) -> None:
        """See that the commit before has ended."""
        if not self._sent or self._seen():
            return
        if self._answered is not None:
            # The coordinator answers in order, and this was not accepted.
            self._end(stored=False)
            return
        if time.monotonic() - self._since < FORGOTTEN:
            raise Unavailable("the commit before this one has not been answered yet")
        self._sent = {}

    def _seen(self) -> bool:
        """Whether what was sent is what the coordinator has."""
        if self._read(list(self._sent)) != self._sent:
            return False
        self._end(stored=True)
        return True

    def _end(self, *, stored: bool) -> None:
        for place, version in self._versions.values():
            if stored:
                place.stored = max(place.stored, version)
        self._sent, self._versions = {}, {}
        answered, self._answered = self._answered, None
        if answered is not None:
            answered(stored)

    def told(self, error: KafkaError | None, parts: Sequence[TopicPartition]) -> None:
        """The driver tells, in a poll, how a commit ended."""
        ended = {(part.topic, part.partition): part for part in parts}
        if self._sent and all(
            key in ended and _place(ended[key]) == place for key, place in self._sent.items()
        ):
            self._end(stored=error is None and all(part.error is None for part in parts))
        if error is None:
            self._mend(ended)

    def _mend(self, ended: Mapping[Key, TopicPartition]) -> None:
        """Where a commit that nobody waited for landed behind a newer one, repeat the newer."""
        behind = {
            key: place.latest
            for key, place in self._places.items()
            if place.latest is not None
            and (part := ended.get(key)) is not None
            and part.error is None
            and part.offset < place.latest.position
        }
        if behind:
            try:
                self._send(_parts(behind))
            except KafkaException as error:
                logger.warning("positions were not committed again: %s", error)

    def lost(self) -> None:
        """This member's generation is over: whatever it sent, nothing more will come of it."""
        self._end(stored=False)


def _place(part: TopicPartition) -> Committed:
    return Committed(part.offset, part.metadata or "")


def _parts(places: Mapping[Key, Committed]) -> list[TopicPartition]:
    return [
        TopicPartition(*key, place.position, metadata=place.progress)
        for key, place in places.items()
    ]
