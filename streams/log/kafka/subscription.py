"""A member of a Kafka group: one consumer, used by one thread at a time.

Theory of operation. The driver fetches and heartbeats in threads of its own; its callbacks run
inside ``consume`` and ``close``. Three things are arranged so that nothing is skipped:

* A callback never raises: the driver would throw away the messages it was about to return, with
  its position already behind them. What goes wrong in one is kept and raised by ``poll``.
* When partitions arrive, the callback only notes them and acknowledges the rebalance. ``poll``
  then asks for their committed places, tells the listener, and starts to fetch exactly where the
  listener said, which the driver accepts at any time. So the listener may block, commit, read the
  log and fail in there, a failure that passes is tried again by the next poll, and no message of
  an assignment can be older than the assignment: what a partition had in the driver's hands when
  it went and came back finds no owner and is dropped.
* ``auto.offset.reset=error``: a position that retention overtook comes as an error. The
  assignment ends as lost and another begins, whose listener sees the gap between the committed
  place and the log's start.

Partitions leave inside the callback, because they are gone once it returns: the listener drains
and commits there. A commit carries the group's generation, so one of a former member is refused
by the broker; but a live member could still commit a partition that it no longer owns, so commits
are filtered by ownership and version in ``commits.py``. How long ownership is certain is in
``ownership.py``.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from streams.config import Flow
from streams.errors import ConfigError, Fatal, LogError, StreamsError, Unavailable
from streams.log.kafka.asking import ANSWER, Asking
from streams.log.kafka.batch import KafkaBatch, runs, take_errors
from streams.log.kafka.client import bury
from streams.log.kafka.commits import Commits, Gone
from streams.log.kafka.errors import error_of, kind_of, translate
from streams.log.kafka.moves import Desk
from streams.log.kafka.ownership import Ownership
from streams.log.kafka.partitions import Key, Partitions, key_of, keys_of
from streams.log.kafka.places import places
from streams.log.kafka.reach import Alone, Reach
from streams.log.kafka.reading import Readers
from streams.log.kafka.scout import Scout
from streams.log.kafka.settings import Settings, prefetched
from streams.log.kafka.statistics import decode
from streams.log.protocol import (
    Answered,
    Assignment,
    Commit,
    Committed,
    Listener,
    Transaction,
)
from streams.text import get_logger

logger = get_logger("streams.kafka")

SLICE = 0.05
"""Seconds the driver is asked to block at once: how late ``wake`` is noticed at worst."""

_epochs = itertools.count(1)
"""One count for the whole process, so that no two assignments of it share an epoch."""

_OUT_OF_RANGE = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)
_TOLD = frozenset({KafkaError._ALL_BROKERS_DOWN, KafkaError._AUTHENTICATION, KafkaError._SSL})
"""The driver's general errors that concern the whole subscription."""

_NO_MEMBER = frozenset(
    {
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError.FENCED_MEMBER_EPOCH,
        KafkaError._ASSIGNMENT_LOST,
    }
)
"""A commit's answer that means: this member is none any more, its partitions are lost."""


class KafkaSubscription:
    """See :class:`streams.log.protocol.Subscription`.

    :param session: seconds after which the coordinator gives up a silent member.
    :param desk: where forced moves of the group are left.
    :param asking: knows why no broker can be reached.
    :param readers: ask after partitions, as somebody who is no member.
    :param leads: which partitions of a topic have a leader.
    :param closed: called once this is closed.
    :param static: the name by which the group knows this member, if it is a static one.
    """

    def __init__(
        self,
        settings: Settings,
        connect: Callable[[dict[str, Any]], Consumer],
        group: str,
        topics: Sequence[str],
        listener: Listener,
        flow: Flow,
        session: float,
        desk: Desk,
        asking: Asking,
        readers: Readers,
        leads: Callable[[str], Collection[int]],
        closed: Callable[[KafkaSubscription], None],
        static: str = "",
    ) -> None:
        if flow.drain >= settings.max_poll:
            logger.warning(
                "group %s: a drain may take %g s (Flow.drain), but a member that does not poll for "
                "%g s (max.poll.interval.ms) is given up: set the drain shorter",
                group, flow.drain, settings.max_poll,
            )  # fmt: skip
        self.group = group
        self.prefetch = prefetched(flow)
        """Bytes of ``flow.bytes`` that the driver's queue may hold."""
        self._settings = settings
        self._connect = connect
        self._topics = list(topics)
        self._flow = flow
        self._session = session
        self._desk = desk
        self._asking = asking
        self._leads = leads
        self._on_close = closed
        self._static = static
        self._bounds = readers.bounds
        self._listener = listener
        self._only = topics[0] if len(topics) == 1 else None
        self._woken = threading.Event()
        self._failure: BaseException | None = None
        """What broke this subscription for good."""
        self._trouble: StreamsError | None = None
        """An error that came along with messages, or through a callback: told by a poll."""
        self._until = float("-inf")
        """The ``valid_until`` of all that is owned."""
        self._connected = False
        self._closed = False
        self._reach = Reach(session)
        self._alone = Alone(self._reach, readers.reaches)
        self._scout = Scout(self._look_after)
        self._user_stats: Callable[[str], None] | None = settings.given.get("stats_cb")
        self._user_error: Callable[[KafkaError], None] | None = settings.given.get("error_cb")
        self._consumers = 0
        """How many there were; only to the last one is listened."""
        self._consumer: Consumer
        self._use(self._join())

    def _join(self) -> Consumer:
        """Make a consumer, and have it join the group."""
        settings, number = self._settings, self._consumers + 1

        def heard(callback: Callable[..., None]) -> Callable[..., None]:
            def call(*args: Any) -> None:
                if number == self._consumers:
                    callback(*args)

            return call

        conf = settings.member(self.group, self._flow, heard(self._report), self._static)
        conf["error_cb"] = heard(self._client_error)
        conf["on_commit"] = heard(self._committed)
        consumer = self._connect(conf)
        try:
            consumer.subscribe(
                self._topics,
                on_assign=heard(self._assign),
                on_revoke=heard(self._revoke),
                on_lost=heard(self._lose),
            )
        except KafkaException as error:
            bury(consumer)
            raise self._translated(error, f"subscribing to {', '.join(self._topics)}") from error
        return consumer

    def _use(self, consumer: Consumer) -> None:
        """This is the consumer from now on; the one before is not listened to any more."""
        settings = self._settings
        self._ownership = Ownership(
            self._session, settings.max_poll, settings.kip848, time.monotonic()
        )
        self._parts = Partitions(consumer, settings.eager)
        self._commits = Commits(
            lambda offsets: consumer.commit(offsets=offsets, asynchronous=True),
            self._places,
            self._member,
        )
        self._consumer = consumer
        self._consumers += 1

    def _start_over(self) -> None:
        """The consumer is cut off and another is not: join with a new one (see ``reach.py``)."""
        self._reach.handled()
        try:
            consumer = self._join()
        except StreamsError as error:
            logger.warning("group %s: joining anew failed: %s", self.group, error)
            return
        logger.warning(
            "group %s: its brokers are out of reach for this client alone, joining anew",
            self.group,
        )  # fmt: skip
        left = list(self._parts.owned.values())
        self._commits.lost()
        self._drop(left)
        self._guard(self._listener.lost, left)
        old = self._consumer
        self._use(consumer)
        bury(old)

    # -- polling

    def poll(self, limit: int, timeout: float) -> Sequence[KafkaBatch]:
        """The next messages, at most ``limit``; blocks only while there are none.

        :raises Unavailable: Kafka cannot be reached now; poll again after a pause.
        :raises LogError: anything worse. What the listener raised comes out as it is.
        """
        self._check()
        self._take_moves()
        self._admit()
        messages = self._consume(limit, 0.0)
        if not messages:
            self._admit()
            messages = self._wait(limit, timeout)
        if self._alone.turn(time.monotonic()):
            self._start_over()  # nobody owns what came
        if not messages:
            self._tell()
            return ()
        for bad in take_errors(messages):
            self._message_error(bad)
        batches = []
        owned, fetched = self._parts.owned, self._parts.fetched
        for topic, partition, run in runs(messages, self._only):
            assignment = owned.get((topic, partition))
            if assignment is not None and (topic, partition) in fetched:
                batches.append(KafkaBatch(topic, partition, run, assignment))
        if not batches:
            self._tell()
        elif isinstance(self._trouble, Unavailable):
            self._trouble = None  # it is over
        return batches

    def _consume(self, limit: int, timeout: float) -> list[Any]:
        now = time.monotonic()
        messages: list[Any] = []
        try:
            messages = self._consumer.consume(limit, timeout)
        except KafkaException as error:
            # The driver raises here only what is fatal: its own state, or this member's.
            self._failure = self._translated(error, f"consuming as group {self.group!r}")
        except RuntimeError as error:
            raise LogError(f"Kafka, group {self.group!r}: this subscription is closed") from error
        self._ownership.polled = now
        self._extend()
        self._check()
        return messages

    def _wait(self, limit: int, timeout: float) -> list[Any]:
        """Block for the first message, in slices, so that :meth:`wake` is heard."""
        deadline = time.monotonic() + timeout
        while self._trouble is None:
            left = deadline - time.monotonic()
            if left < 0.001 or self._woken.is_set():
                break  # to the driver, less than a millisecond is none: it would be a busy loop
            if self._parts.silent:
                # Nothing can come but a rebalance, and an event wakes at once.
                self._woken.wait(min(left, SLICE))
                messages = self._consume(limit, 0.0)
            else:
                messages = self._consume(1, min(left, SLICE))
                if messages and limit > 1:
                    messages += self._consume(limit - 1, 0.0)
            if messages:
                return messages
            self._take_moves()
            self._admit()
        self._woken.clear()
        return []

    def _check(self) -> None:
        """Raise what broke this subscription; a member that is fenced owns nothing any more."""
        if self._failure is None:
            return
        if isinstance(self._failure, Fatal):
            left = list(self._parts.owned.values())
            self._drop(left)
            self._guard(self._listener.lost, left)
        raise self._failure

    def _tell(self) -> None:
        """Raise what went wrong on the way, once."""
        trouble, self._trouble = self._trouble, None
        if trouble is not None:
            raise trouble

    # -- errors

    def _translated(self, error: KafkaException | KafkaError, doing: str) -> StreamsError:
        return translate(error, doing, self._settings.scrub)

    def _client_error(self, error: KafkaError) -> None:
        """The driver's error_cb: brokers that are gone, logins that failed, fatal states."""
        try:
            if self._user_error is not None:
                self._user_error(error)
        except Exception:
            logger.exception("group %s: error_cb raised", self.group)
        self._asking.told(error)
        if error.code() not in _TOLD and not error.fatal():
            # One connection of several, often one that was idle: the driver makes another.
            logger.debug("group %s: %s", self.group, self._settings.scrub(str(error.str())))
            return
        doing = f"group {self.group!r}"
        trouble = self._translated(error, doing)
        if error.fatal():
            self._failure = self._failure or trouble
            return
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            trouble = self._asking.absent(doing, time.monotonic() - ANSWER)
        if isinstance(trouble, Fatal) and self._connected:
            # It worked before: a broker that starts up may not know its users yet.
            trouble = Unavailable(str(trouble))
        if not isinstance(self._trouble, Fatal):
            self._trouble = trouble  # what else is said of it: that all brokers are down

    def _message_error(self, bad: Any) -> None:
        """An error that came in a message's place."""
        error: KafkaError = bad.error()
        topic, partition = bad.topic(), bad.partition()
        if error.code() in _OUT_OF_RANGE:
            self._expired(topic, partition, bad.offset())
            return
        if error.code() == KafkaError._MAX_POLL_EXCEEDED:
            return  # logged by the driver; the loss is told on its own
        where = f"{topic}/{partition}" if topic and partition is not None else f"{self.group!r}"
        trouble = self._translated(error, f"consuming {where}")
        if error.fatal() or error.code() == KafkaError._FATAL:
            self._failure = self._failure or trouble
        elif self._trouble is None or isinstance(self._trouble, Unavailable):
            self._trouble = trouble

    def _expired(self, topic: str, partition: int, offset: int) -> None:
        """The log no longer has the position we were at: the listener resolves it anew."""
        key = (topic, partition)
        assignment = self._parts.owned.get(key)
        if assignment is None or key not in self._parts.fetched:
            return
        logger.warning(
            "group %s: %s/%d has no offset %d any more, its position is resolved anew",
            self.group, topic, partition, offset,
        )  # fmt: skip
        self._drop([assignment])
        self._guard(self._listener.lost, [assignment])
        self._stop([key])
        self._parts.expect([key])

    def _guard(self, tell: Callable[[Sequence[Assignment]], None], what: list[Assignment]) -> None:
        """Tell the listener; what it raises breaks the subscription, but not the callback."""
        try:
            if what:
                tell(what)
        except BaseException as error:
            self._failure = self._failure or error

    # -- statistics and ownership

    def _report(self, text: str) -> None:
        try:
            snapshot, now = decode(text), time.monotonic()
            self._ownership.take(snapshot, now)
            self._reach.member(snapshot, self._parts.fetched - self._parts.paused, now)
            if self._user_stats is not None:
                self._user_stats(text)
        except Exception:
            logger.exception("group %s: the driver's statistics were not understood", self.group)

    def _extend(self) -> None:
        """Carry what is confirmed over to what is owned."""
        until = self._ownership.valid_until
        if until != self._until:
            self._until = until
            for assignment in self._parts.owned.values():
                assignment.valid_until = until

    # -- what the group decides; called inside consume and close, so nothing may be raised

    def _assign(self, consumer: Consumer, parts: list[TopicPartition]) -> None:
        self._ownership.assigned()
        if self._closed:
            return
        try:
            self._parts.arrive(parts)
        except KafkaException as error:
            self._failure = self._translated(error, f"joining group {self.group!r}")

    def _revoke(self, consumer: Consumer, parts: list[TopicPartition]) -> None:
        self._leave(parts, self._listener.revoked)

    def _lose(self, consumer: Consumer, parts: list[TopicPartition]) -> None:
        logger.warning("group %s: this member was given up, %d partitions", self.group, len(parts))
        self._commits.lost()
        for key in keys_of(parts):
            if key in self._parts.owned:
                self._parts.owned[key].valid_until = float("-inf")
        self._leave(parts, self._listener.lost)

    def _leave(
        self, parts: list[TopicPartition], tell: Callable[[Sequence[Assignment]], None]
    ) -> None:
        keys, owned = keys_of(parts), self._parts.owned
        for key in keys:
            self._parts.arriving.pop(key, None)
        leaving = [owned[key] for key in keys if key in owned]
        self._guard(tell, leaving)
        self._drop(leaving)
        self._stop(keys, rebalance=True)

    def _drop(self, assignments: list[Assignment]) -> None:
        """These are ours no more."""
        self._commits.disowns(assignments)
        self._parts.disown(assignments)

    def _stop(self, keys: Iterable[Key], *, rebalance: bool = False) -> None:
        try:
            self._parts.stop(keys, rebalance=rebalance)
        except KafkaException as error:
            doing = f"giving up partitions of group {self.group!r}"
            self._failure = self._failure or self._translated(error, doing)

    # -- partitions that arrive; outside of the driver's callbacks

    def _admit(self) -> None:
        """Tell the listener what arrived, and fetch from where it says. What cannot be begun yet
        is asked after in another thread, until it answers, and holds up nothing else."""
        parts = self._parts
        if not parts.arriving:
            return
        new = parts.new()
        if new:
            self._try_to_begin(new)
        now = time.monotonic()
        for key in parts.due(now):
            self._scout.look(key)
        outcomes = self._scout.outcomes()
        waiting = [key for key in outcomes if key in parts.arriving and parts.arriving[key].pause]
        for key in waiting:
            parts.arriving[key].later(now)
        answered = [key for key in waiting if outcomes[key]]
        if answered:
            self._try_to_begin(answered)

    def _look_after(self, topic: str, partition: int) -> None:
        """In the scout's thread: see that a partition answers."""
        if partition not in self._leads(topic):
            raise Unavailable(f"Kafka: no broker leads {topic}/{partition}")
        self._bounds(topic, partition)

    def _try_to_begin(self, keys: Sequence[Key]) -> None:
        try:
            led = self._led(keys)
            self._begin([key for key in keys if key in led])
        except Gone:
            return  # the driver will tell so
        except LogError as error:
            if isinstance(error, Fatal):
                raise
            self._put_off(keys, error)
            return
        without = [key for key in keys if key not in led]
        if without:
            names = ", ".join(f"{topic}/{number}" for topic, number in without)
            why = f"Kafka, group {self.group!r}: no broker leads {names} now"
            self._put_off(without, Unavailable(why))

    def _put_off(self, keys: Sequence[Key], error: LogError) -> None:
        now = time.monotonic()
        for key in keys:
            arrival = self._parts.arriving.get(key)
            if arrival is not None:
                if not arrival.pause and self._parts.owned:
                    logger.warning("group %s: %s/%d waits: %s", self.group, *key, error)
                arrival.later(now)
        if not self._parts.owned:
            self._trouble = error

    def _led(self, keys: Sequence[Key]) -> set[Key]:
        """Those of them that a broker leads: of others the bounds are asked for in vain."""
        topics = dict.fromkeys(topic for topic, _ in keys)
        return {(topic, number) for topic in topics for number in self._leads(topic)}

    def _begin(self, keys: Sequence[Key]) -> None:
        """Tell the listener of these, and fetch them.

        :raises LogError: none of them could be begun; unless it is Fatal, they can be later.
        :raises Gone: this member was given up.
        """
        if not keys:
            return
        committed = self._places(keys)
        until = self._until = self._ownership.valid_until
        arrived = [Assignment(*key, next(_epochs), committed[key], until) for key in keys]
        self._parts.owned.update((key_of(each), each) for each in arrived)
        self._commits.owns(arrived)
        try:
            self._listener.assigned(arrived)
            self._parts.fetch(arrived)
        except KafkaException as error:
            self._failure = self._translated(error, f"fetching as group {self.group!r}")
            raise self._failure from error
        except BaseException as error:
            self._drop(arrived)
            if isinstance(error, Fatal) or not isinstance(error, LogError):
                self._failure = self._failure or error
            raise
        self._connected = True
        for key in keys:
            self._parts.arriving.pop(key, None)

    def _places(self, keys: Sequence[Key]) -> dict[Key, Committed | None]:
        """Where the group is in these.

        :raises Gone: this member was given up.
        """
        try:
            return places(self._consumer.committed([TopicPartition(*key) for key in keys], ANSWER))
        except KafkaException as error:
            cause = error_of(error)
            if cause is not None and cause.code() in _NO_MEMBER:
                raise Gone from error
            raise self._translated(error, f"positions of group {self.group!r}") from error

    def _take_moves(self) -> None:
        """Start over where somebody forced the group to."""
        mine = self._desk.look(self._parts.fetched)
        if not mine:
            return
        assignments = [self._parts.owned[key] for key in mine]
        logger.warning("group %s: moved by force: %s", self.group, assignments)
        self._drop(assignments)
        self._guard(self._listener.lost, assignments)
        self._stop(mine)
        self._parts.expect(mine)
        try:
            self._commits.place(mine)
            self._desk.taken(mine)
        except Gone:
            pass  # the driver will tell so; whoever owns them next finds the move
        except KafkaException as error:
            self._trouble = self._translated(error, f"moving group {self.group!r}")
        except LogError as error:
            self._trouble = error

    # -- commits

    def commit(self, commits: Sequence[Commit]) -> None:
        """Store these places durably; stale ones and those of partitions that left are dropped.

        :raises Unavailable: nothing is known to be stored; commit again later.
        :raises TooLarge: the broker's offset.metadata.max.bytes is smaller than usual.
        """
        now = time.monotonic()
        doing = f"committing positions of group {self.group!r}"
        try:
            stored = self._commits.commit(commits)
        except RuntimeError as error:
            raise Unavailable(f"Kafka, {doing}: this subscription is closed") from error
        except Gone:
            # Nothing is ours any more; the driver will tell so, too.
            logger.warning("group %s: a commit came too late, this member was given up", self.group)
            self._ownership.confirmed = float("-inf")
            self._extend()
            return
        except Unavailable as error:
            raise Unavailable(f"Kafka, {doing}: {error}") from error
        except KafkaException as error:
            raise self._translated(error, doing) from error
        if stored and not self._settings.kip848:
            # A classic coordinator takes a commit for a heartbeat; KIP-848's does not.
            self._ownership.confirm(now)
            self._extend()

    def submit(self, commits: Sequence[Commit], answered: Answered) -> None:
        """Store these places; a later poll or commit tells whether they are."""
        now = time.monotonic()

        def end(stored: bool) -> None:
            if stored and not self._settings.kip848:
                self._ownership.confirm(now)
                self._extend()
            answered(stored)

        doing = f"committing positions of group {self.group!r}"
        try:
            sent = self._commits.submit(commits, end)
        except RuntimeError as error:
            raise Unavailable(f"Kafka, {doing}: this subscription is closed") from error
        except KafkaException as error:
            raise self._translated(error, doing) from error
        if not sent:
            answered(False)

    def _member(self) -> str | None:
        """Who we are in the group; None where the driver has left it, unpolled for too long."""
        ownership = self._ownership
        if time.monotonic() > ownership.polled + ownership.patience:
            return None
        return self._consumer.memberid()

    def _committed(self, error: KafkaError | None, parts: list[TopicPartition]) -> None:
        """The driver's on_commit: how a commit ended, told inside a poll."""
        self._commits.told(error, parts)
        failed = error or next((part.error for part in parts if part.error is not None), None)
        if failed is None or failed.code() == KafkaError._FATAL:
            return  # what was fatal, such as that the member is fenced, the driver tells by itself
        if failed.code() in _NO_MEMBER:
            self._ownership.confirmed = float("-inf")
        elif kind_of(failed) is not Unavailable:
            self._trouble = self._translated(failed, f"positions of group {self.group!r}")

    def restart(self, assignments: Iterable[Assignment]) -> None:
        """Give these up, and begin with the partitions anew: they stay this member's in the group,
        which says at the next poll where it stands there."""
        owned = self._parts.owned
        given = [each for each in assignments if owned.get(key_of(each)) is each]
        if given:
            keys = [key_of(each) for each in given]
            self._drop(given)
            self._stop(keys)
            self._parts.expect(keys)

    def keep_alive(self) -> None:
        """Nothing is needed: the driver heartbeats by itself.

        Its reports are heard in ``poll`` only, so a drain longer than the session (of the classic
        protocol: KIP-848's is 45 s) leaves the partitions that stay uncertain until it is over.
        """

    # -- the rest

    def pause(self, assignments: Iterable[Assignment]) -> None:
        """Deliver nothing of these until resumed; what was prefetched is thrown away."""
        self._parts.pause(assignments)

    def resume(self, assignments: Iterable[Assignment]) -> None:
        """Deliver these again, from behind the last message delivered."""
        self._parts.resume(assignments)

    def wake(self) -> None:
        """Make a blocked ``poll`` return soon (any thread)."""
        self._woken.set()

    def begin(self) -> Transaction:
        """Kafka has no transaction for a handler's SQL."""
        raise ConfigError("kafka:// has no transaction for a handler's SQL: use sqlite://")

    def close(self) -> None:
        """Leave the group. ``listener.revoked`` is called for what is still owned.

        A static member (group.instance.id) stays in the group for its session, so that a restart
        finds its partitions again. Does not wait longer than some seconds for a coordinator that
        does not answer: the session ends the membership then.
        """
        if self._closed:
            return
        self._closed = True
        failure, self._failure = self._failure, None
        self._desk.close()
        self._scout.close()
        left = list(self._parts.owned.values())
        self._guard(self._listener.revoked, left)
        self._drop(left)
        self._parts.arriving.clear()
        # What the driver still calls back has nothing to do any more.
        closing = threading.Thread(target=self._close, name="streams-kafka-close", daemon=True)
        closing.start()
        closing.join(ANSWER)
        if closing.is_alive():
            logger.warning("group %s: its coordinator does not answer, left without", self.group)
        self._on_close(self)
        raised, self._failure = self._failure, failure or LogError("this subscription is closed")
        if raised is not None:
            raise raised

    def _close(self) -> None:
        consumer = self._consumer
        try:
            # librdkafka's close sends no LeaveGroup for a member without partitions: its successors
            # would wait for it until its session ends. A member that unsubscribes does send one; a
            # static member must not.
            if not self._static and not consumer.assignment():
                consumer.unsubscribe()
            consumer.close()
        except (KafkaException, RuntimeError) as error:
            logger.warning("group %s: %s", self.group, self._settings.scrub(str(error)))
