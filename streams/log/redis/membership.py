"""A member of a group: its heartbeat, and the leases of its partitions.

Every partition's lease is beside the partition, in the hash that also holds the group's place
there, so that one script can check the one before it stores the other, on any node of a cluster.
Safety rests on that hash alone. Who the members are stands in one hash of the group; it only says
how the partitions should be shared out (:mod:`streams.log.membership`), so it may be late, or lost,
and nothing worse happens than a rebalance.

No clock of a server decides anything, as it may be stepped. Each confirmation counts a number in
the row up; whoever has seen a row stand unchanged for its whole length, on its own monotonic
clock (:class:`streams.log.membership.Watch`), takes the lease by compare-and-set, or removes the
member. An owner counts its own time from before it asked. The time that is stored beside
(``until``) is for people, and for refusing to move a group that seems to run.

Anybody can write into these keys. What makes no sense there is passed over and written anew, save
a position: without it nobody knows where to go on, so that is an error that says what to do.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from streams.errors import LogError, Mismatch, NotFound, Unavailable
from streams.log.membership import FREE, NEVER, Lease, Member, Plan, Watch, length, plan
from streams.log.names import member_fenced
from streams.log.protocol import Assignment, Committed, Static
from streams.log.redis.client import Client, Command, scripted
from streams.log.redis.columns import Rows
from streams.log.redis.groups import Groups
from streams.log.redis.keys import Part, before, entry_id, members_key, offset, topics_key
from streams.log.redis.reading import Stream, stream_of
from streams.log.redis.stored import DIGITS, row_of, shown, unusable
from streams.log.redis.topics import Topics
from streams.log.redis.trail import Trail
from streams.text import get_logger
from streams.wire import whole

logger = get_logger("streams")

MANY = 500
"""Partitions renewed by one script call, where they are all on one server."""

Place = tuple[str, int]

Standing = tuple[bytes, bytes, bytes, bytes]
"""A lease as it stands: owner, epoch, how often it was confirmed, until when."""


class Saved(NamedTuple):
    """A group's place in a partition, as this member knows it."""

    position: int
    progress: str = ""
    read: int | None = None


class Owned:
    """A partition that this member owns."""

    __slots__ = (
        "assignment",
        "cursor",
        "lease",
        "part",
        "paused",
        "recounted",
        "rows",
        "sent",
        "trail",
        "version",
    )

    def __init__(self, assignment: Assignment, part: Part, lease: bytes) -> None:
        self.assignment = assignment
        self.part = part
        self.lease = lease
        self.cursor = b"0-0"
        """ID of the last entry read."""
        self.rows: Rows = []
        """Read, and not delivered yet."""
        self.trail = Trail(None)
        self.recounted = False
        """The trail knows better than what was last committed."""
        self.paused = False
        self.version = 0
        """Of the last commit."""
        self.sent = 0
        """The greatest version of a commit that was sent, whatever became of it."""

    @property
    def place(self) -> Place:
        """Topic and partition."""
        return self.assignment.topic, self.assignment.partition


class Taken(NamedTuple):
    """A lease that was taken, and what was stored there."""

    part: Part
    epoch: int
    saved: Saved | None
    stream: Stream
    valid_until: float
    beyond: int | None
    """The place that was stored, where it lies beyond the stream's end."""


@dataclass(slots=True)
class Beat:
    """What came of a heartbeat."""

    plan: Plan = field(default_factory=Plan)
    changed: bool = False
    """The members are not those of the last time."""
    lost: list[Owned] = field(default_factory=list)
    """Somebody else's by now, or gone with all that the server had."""
    adrift: list[Owned] = field(default_factory=list)
    """Still one's own, but their stream ends below what was read of it."""
    streams: dict[Place, Stream] = field(default_factory=dict)
    """What is known of the streams of what is owned."""


class Membership:
    """One member of a group. Used by one thread at a time."""

    def __init__(
        self,
        client: Client,
        topics: Topics,
        groups: Groups,
        group: str,
        names: Sequence[str],
        window: int,
        static: Static | None = None,
    ) -> None:
        self.me = str(static or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}")
        self._name = static.name if static else ""
        self._client = client
        self._topics = topics
        self._groups = groups
        self._group = group
        self._names = tuple(names)
        self._window = window
        self.terms = client.settings.terms
        self._term = int(self.terms.lease * 1000)
        self._parts: dict[Place, Part] = {}
        """Of all topics that any member reads: who takes what depends on all of them."""
        self._counts: dict[str, int] = {}
        self._consider(self._names)
        self._starts = groups.starts(group, names)
        self.saved: dict[Place, Saved] = {}
        """Where the group stood last, in all partitions this member ever owned."""
        self._epochs: dict[Place, int] = {}
        self._watch = Watch(self.terms.heartbeat)
        self._namesakes: dict[str, str] = {self._name: self.me} if self._name else {}
        """Who has a static name now."""
        self._beats = 0
        self._over: dict[Place, Standing] = {}
        """Foreign leases whose length is over, as they stood all the time."""
        self._inherited: dict[Place, bytes] = {}
        """Leases of a predecessor, and its ID."""
        self._departed: dict[bytes, bytes] = {}
        """Members whose rows stood unchanged for their whole length, to be removed."""
        self._wiped = False
        """The last heartbeat found partitions without their epochs, which had some before."""
        self._met: frozenset[str] = frozenset()
        self._joined = False
        """The server has been told of this member."""
        self._careful_until = 0.0
        """After the server lost everything, members must find each other again: until then only
        what this member owned before is taken."""
        self._complained = False
        self._next_look = 0.0
        """When the streams are looked at again."""

    # -- heartbeats

    @property
    def partitions(self) -> int:
        """How many partitions its topics have."""
        return len(self._parts)

    def look(self) -> None:
        """Look at the streams at the next heartbeat: something may have happened to them."""
        self._next_look = 0.0

    def join(self) -> None:
        """Become a member, so that the others count this one. A static one takes its name over.

        :raises LogError: that could not be done.
        """
        self._client.run(self._heartbeat(join=True))
        self._joined = True

    def _consider(self, names: Iterable[str]) -> bool:
        """Look after these topics, whoever reads them; whether they are others than before."""
        counts: dict[str, int] = {}
        parts: dict[Place, Part] = {}
        for name in sorted({*names, *self._names}):
            try:
                own = self._topics.parts(name)
            except LogError as error:
                if name in self._names or not isinstance(error, NotFound | Mismatch):
                    raise
                continue  # deleted, and its readers do not know yet
            counts[name] = len(own)
            parts.update(((name, part.partition), part) for part in own)
        changed = counts != self._counts
        self._counts, self._parts = counts, parts
        return changed

    def beat(self, owned: Sequence[Owned]) -> Beat:
        """Say that this member lives, extend its leases, and see who has the others.

        :raises MemberFenced: another process has this static member's name.
        :raises LogError: nothing of that could be done.
        """
        found = Beat()
        sent = time.monotonic()
        look = sent >= self._next_look
        mine = {each.place: each for each in owned}
        places = list(self._parts)
        size = 1 if self._client.servers.clustered else MANY
        chunks = [places[at : at + size] for at in range(0, len(places), size)]
        answers = self._client.run_all(
            [self._heartbeat(), *(self._renewal(chunk, mine, look) for chunk in chunks)]
        )
        if not all(isinstance(answer, LogError) for answer in answers):
            self._watch.look(time.monotonic())
        self._wiped = False
        self._over.clear()
        self._inherited.clear()
        leases: dict[Place, Lease] = {}
        failure: LogError | None = None
        for chunk, rows in zip(chunks, answers[1:], strict=True):
            if isinstance(rows, LogError):
                failure = rows
                # What is not known is nobody's to take, and mine until it is known not to be.
                for place in chunk:
                    leases[place] = (
                        Lease(self.me, mine[place].assignment.epoch, NEVER)
                        if place in mine
                        else Lease("?", 0, NEVER)
                    )
                continue
            for place, row in zip(chunk, rows, strict=True):
                leases[place] = self._lease(found, sent, mine.get(place), place, row)
        members = answers[0]
        if isinstance(members, LogError):
            if isinstance(failure, LogError):
                raise members
            failure = members
        self._complain(failure)
        if look and failure is None:
            self._next_look = sent + self.terms.lease
        # What has not answered is watched anew: its owners could not reach it either.
        seen: set[Hashable] = {
            place
            for chunk, rows in zip(chunks, answers[1:], strict=True)
            if not isinstance(rows, LogError)
            for place in chunk
        }
        if isinstance(members, LogError):
            self._watch.keep(seen)
        else:
            self._watch.keep(seen.union(members[1::2]))
            held = {each.place for each in mine.values() if each not in found.lost}
            self._meet(found, sent, members, leases, held)
        return found

    def renew(self, owned: Sequence[Owned]) -> list[Owned]:
        """Extend the leases, and nothing else: those that are not one's own any more.

        :raises LogError: it could not be done for any.
        """
        beat = self.beat(owned)
        return [*beat.lost, *beat.adrift]

    def _heartbeat(self, *, join: bool = False) -> Command:
        self._beats += 1
        departed, self._departed = self._departed, {}
        return scripted(
            self._group, "beat", [members_key(self._group)],
            self.me, self._name, int(join), self._beats, self._term, ",".join(self._names),
            *(word for row in departed.items() for word in row),
        )  # fmt: skip

    def _renewal(self, places: Iterable[Place], mine: dict[Place, Owned], look: bool) -> Command:
        keys: list[bytes] = []
        args: list[Any] = [self.me, self._term, self._group, int(look)]
        for place in places:
            part = self._parts[place]
            keys += (part.group(self._group), part.stream)
            owned = mine.get(place)
            if owned is None:
                args += (0, b"0-0", "")
                continue
            read: int | None = None
            if owned.recounted and place in self.saved:
                read = owned.trail.below(self.saved[place].position)
            args += (owned.assignment.epoch, owned.cursor, "" if read is None else read)
        return scripted(self._group, "renew", keys, *args)

    def _lease(
        self, found: Beat, sent: float, owned: Owned | None, place: Place, row: Sequence[Any]
    ) -> Lease:
        state, owner, written, beat, until, term, *stream = row
        standing: Standing = (bytes(owner), bytes(written), bytes(beat), bytes(until))
        epoch = whole(standing[1], DIGITS) or 0
        self._wiped |= not any(standing) and self._epochs.get(place, 0) > 0
        self._epochs[place] = max(epoch, self._epochs.get(place, 0))
        if owned is not None:
            if state == 0:
                found.lost.append(owned)
            else:
                owned.assignment.valid_until = self.terms.valid_until(sent)
                owned.recounted = False
                if stream:
                    found.streams[place] = stream_of(stream)
                if state == 2:
                    found.adrift.append(owned)
                elif state == 3:
                    self._next_look = 0.0
                    owned.trail.total = None
                return Lease(self.me, epoch, NEVER)
        if not owner:
            return Lease("", epoch, sent) if epoch else FREE
        name = shown(standing[0])
        current = self._namesakes.get(name.partition(":")[0]) if ":" in name else None
        if self.me in (name, current):
            # A predecessor's of the same name, or taken by a request whose answer never came.
            self._inherited[place] = standing[0]
            return Lease(self.me, epoch, NEVER)
        lasts = whole(bytes(term), DIGITS)
        left = self._watch.left(
            place, standing, length(None if lasts is None else lasts / 1000, self.terms.lease)
        )
        if not left:
            self._over[place] = standing
        return Lease(current or name, epoch, sent + left)

    def _meet(
        self,
        found: Beat,
        sent: float,
        answer: Sequence[Any],
        leases: dict[Place, Lease],
        held: Collection[Place],
    ) -> None:
        known, *words = answer
        if known < 0:
            raise member_fenced(self._group, self._name)
        if self._joined and not known:
            self._start_over(sent)
        self._joined = True
        rows = self._alive(sent, dict(zip(words[::2], words[1::2], strict=True)))
        self._namesakes = {row.id.partition(":")[0]: row.id for row in rows if ":" in row.id}
        met = frozenset(row.id for row in rows)
        found.changed, self._met = met != self._met, met
        if self._consider(topic for row in rows for topic in row.topics):
            # Of some topics it is not known yet who has what: the next heartbeat asks.
            found.changed = True
            return
        found.plan = plan(self.me, sent, rows, self._counts, leases, held)
        if sent < self._careful_until:
            known_here = {
                place: epoch for place, epoch in found.plan.acquire.items() if place in self.saved
            }
            found.plan = Plan(found.plan.release, known_here, found.plan.renew, self._careful_until)

    def _alive(self, sent: float, rows: dict[bytes, bytes]) -> list[Member]:
        """This member and the others that are alive."""
        alive = [Member(self.me, self._names, NEVER)]
        for id, text in rows.items():
            row = row_of(text)
            lasts = length(row.lease if row else None, self.terms.lease)
            left = self._watch.left(id, text, lasts)
            if not left:
                self._departed[id] = text
            elif row is not None and id:
                alive.append(Member(shown(id), row.topics, sent + left))
        return alive

    def _start_over(self, now: float) -> None:
        """The server does not know this member: others took it for dead, or all is lost there.
        Write again what is known here; what others have written meanwhile stays. After a loss all
        members find themselves in the same state, so none takes what another one may own."""
        logger.warning(
            "%s: not a member any more, as this process stood still or the server has lost its "
            "data; joining again",
            self._group,
        )
        if self._wiped:
            self._careful_until = now + self.terms.lease
        try:
            for name in self._names:
                self._topics.restore(name)
            self._groups.register(self._group, self._names)
            key = topics_key(self._group)
            for name in self._names:
                begun = " ".join(
                    f"{partition}:{entry_id(start).decode()}"
                    for (topic, partition), start in self._starts.items()
                    if topic == name
                )
                if begun:
                    self._client.run(scripted(self._group, "begin", [key], name, begun))
        except LogError as error:
            logger.warning("%s: not all could be written again: %s", self._group, error)

    def _complain(self, failure: LogError | None) -> None:
        if failure is not None and not self._complained:
            logger.warning("%s: a part of the servers does not answer: %s", self._group, failure)
        self._complained = failure is not None

    # -- leases

    def take(self, places: Sequence[Place]) -> list[Taken]:
        """Take these leases; those that could be taken."""
        sent = time.monotonic()
        commands: list[Command] = []
        for place in places:
            part = self._parts[place]
            saved = self.saved.get(place)
            if saved is None and place in self._starts:
                saved = Saved(self._starts[place])
            commands.append(
                scripted(
                    str(part), "take", (part.group(self._group), part.stream),
                    self.me, self._term, self._group, self._window,
                    entry_id(saved.position) if saved else b"",
                    saved.progress if saved else "",
                    "" if saved is None or saved.read is None else saved.read,
                    self._epochs.get(place, 0),
                    self._inherited.get(place, b""),
                    *self._over.get(place, (b"", b"", b"", b"")),
                )
            )  # fmt: skip
        taken: list[Taken] = []
        failure: LogError | None = None
        for place, answer in zip(places, self._client.run_all(commands), strict=True):
            if isinstance(answer, LogError):
                if isinstance(answer, Unavailable):
                    self._complain(answer)
                else:
                    failure = answer
                continue
            if not answer[0]:
                continue
            if answer[0] < 0:
                part = self._parts[place]
                failure = Mismatch(
                    f"{part}: "
                    + unusable(
                        part.group(self._group), "position", answer[1],
                        f"set it by `streams reset {self._group} {part.topic} "
                        f"--partition {part.partition} --to PLACE`",
                    )
                )  # fmt: skip
                continue
            _, epoch, position, progress, read, *stream, beyond = answer
            stored: Saved | None = None
            if position:
                text = bytes(progress or b"").decode("ascii", "replace")
                stored = Saved(offset(position), text, int(read) if read else None)
                self.saved[place] = stored
            self._epochs[place] = epoch
            until = self.terms.valid_until(sent)
            over = offset(beyond) if beyond else None
            taken.append(Taken(self._parts[place], epoch, stored, stream_of(stream), until, over))
        if failure is not None:
            self.release([self.own(each) for each in taken])
            raise failure
        return taken

    def own(self, taken: Taken) -> Owned:
        """A taken lease as an assignment."""
        saved, part = taken.saved, taken.part
        committed = Committed(saved.position, saved.progress) if saved else None
        assignment = Assignment(
            part.topic, part.partition, taken.epoch, committed, taken.valid_until
        )
        assignment.beyond = taken.beyond
        return Owned(assignment, part, part.group(self._group))

    def show(self, owned: Sequence[Owned]) -> None:
        """Make native groups where this one has no place yet, so that until its first commit
        nothing is trimmed that it has not read."""
        commands: list[Command] = []
        for each in owned:
            position, total = each.assignment.position, each.trail.total
            read = () if total is None else ("ENTRIESREAD", total)
            stream, last = each.part.stream, before(position)
            call = ("XGROUP", "CREATE", stream, self._group, last, *read)
            commands.append(Command(str(each.part), stream, *call))
        for answer in self._client.run_all(commands):
            if isinstance(answer, Unavailable):
                logger.info("%s: not shown by Redis's own tools yet: %s", self._group, answer)

    def release(self, owned: Iterable[Owned]) -> None:
        """Set leases free; what cannot be told now runs out by itself."""
        self._free(
            scripted(str(each.part), "release", [each.lease], self.me, each.assignment.epoch)
            for each in owned
        )

    def give_up(self, places: Iterable[Place]) -> None:
        """Set leases free that only bear this member's name."""
        self._free(
            scripted("expel", "expel", [self._parts[place].group(self._group)], owner)
            for place in places
            if (owner := self._inherited.get(place))
        )

    def _free(self, commands: Iterable[Command]) -> None:
        for answer in self._client.run_all(list(commands)):
            if isinstance(answer, LogError):
                logger.info("%s: a lease was not released: %s", self._group, answer)

    def leave(self) -> None:
        """Not a member any more; what cannot be told now runs out by itself."""
        key = members_key(self._group)
        try:
            self._client.run(Command(self._group, key, "HDEL", key, self.me))
        except LogError as error:
            logger.info("%s: could not take leave: %s", self._group, error)
