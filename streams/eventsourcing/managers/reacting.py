"""How a process manager takes a message, so that each is reacted to once, with all that follows.

1. The reaction is recorded in the instance's history, under the message's own cause. A message that
   comes again finds it there; nothing is recorded, and whatever the function would say today does
   not matter.
2. The reaction's actions are carried out in order, each under its own cause. Those that were
   carried out before are found by it.
3. A refused command is reacted to in the same way, with the event ``Refused``.

A reaction is recorded only when the actions of the one before it have been carried out. A process
that does not know so of itself carries them out again, which costs it a look at the log. So the
actions of an instance have their effects in order, although its messages may come from several
topics to several processes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from streams.errors import CodeTooOld, InvalidValue, find_code_too_old
from streams.eventsourcing.aggregate import Aggregate
from streams.eventsourcing.causes import cause_text, message_identity
from streams.eventsourcing.errors import HistoryTruncated
from streams.eventsourcing.keyed_lock import KeyedLock
from streams.eventsourcing.managers.actions import Refused
from streams.eventsourcing.managers.definition import ManagerDefinition, Trigger, UnfinishedReaction
from streams.eventsourcing.managers.reactions import (
    Instance,
    Reacted,
    StoredAction,
    StoredCancel,
    StoredCommand,
    StoredTimeout,
    command_cause,
    refusal_cause,
    sequence_of,
)
from streams.eventsourcing.managers.timeouts import TimeoutDue
from streams.health import ManagerStats
from streams.log.protocol import Log
from streams.message import Message

MAX_DEPTH = 100
"""Reactions that follow from each other: to a message, to the refusal of one of its commands, to
the refusal of a command that answers that one, and so on."""

MAX_DONE = 100_000
"""Instances of which it is remembered up to where their actions were carried out, at most."""


class Reactor:
    """Takes the messages of one manager."""

    def __init__(
        self, definition: ManagerDefinition[Any], instances: Aggregate[Reacted, Instance]
    ) -> None:
        self._definition = definition
        self._where = definition.where
        self._instances = instances
        self._lock = KeyedLock()
        self._log: Log | None = None
        """That of the app's current entering."""
        self._done: OrderedDict[str, int] = OrderedDict()
        """Up to which version of each instance this process knows that actions were carried out."""
        self.stats = ManagerStats()

    async def receive(self, event: Any, message: Message[Any]) -> None:
        """Take a message of one of the manager's topics."""
        with self._counting_failures():
            key = self._definition.key_of(event)
            if key is None:
                self._count_reaction(passed_over=1)
                return
            what = f"{message.topic} {message.id}"
            cause = cause_text(f"message/{message_identity(message)}")
            await self._react_in_turn(key, Trigger(what, cause, event))

    async def receive_timeout(self, due: TimeoutDue, message: Message[Any]) -> None:
        """Take a timeout that is due."""
        if not due.key:
            self._count_reaction(passed_over=1)
            return
        cause = cause_text(f"timeout/{due.sequence}/{due.name}")
        what = f"timeout {due.name}"
        with self._counting_failures():
            await self._react_in_turn(due.key, Trigger(what, cause, None, (due.name, due.sequence)))

    @contextmanager
    def _counting_failures(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if find_code_too_old(error) is None:
                self._count_reaction(failures=1)
            raise

    def _count_reaction(self, **more: int) -> None:
        old = self.stats
        self.stats = replace(old, **{name: getattr(old, name) + n for name, n in more.items()})

    async def _react_in_turn(self, key: str, trigger: Trigger) -> None:
        """React, after those who came before with the same instance in this process."""
        log = self._definition.app.log
        if log is not self._log:  # the app was entered anew
            self._log, self._lock = log, KeyedLock()
            self._done.clear()
        lock = self._lock
        if not lock.try_acquire(key):
            await lock.wait(key)
        try:
            await self._react(key, trigger, depth=1)
        except HistoryTruncated:
            self._done.pop(key, None)  # the log may have lost the reactions that it speaks of
            raise
        finally:
            lock.release(key)

    async def _react(self, key: str, trigger: Trigger, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise InvalidValue(
                f"{self._where}: instance {key!r} has answered {MAX_DEPTH} refusals, one after the "
                "other, with commands that were refused again: answer a refusal that recurs with "
                "End(), or with Schedule(...) to try later"
            )
        instances = self._instances.with_options(cause=trigger.cause)
        while True:
            try:
                decided = await instances.decide(key, self._decide_reaction, key, trigger)
            except UnfinishedReaction as unfinished:
                found = unfinished.instance
                await self._carry_out(key, found.version, found.actions, depth)
            else:
                break
        if not decided.events:
            self._count_reaction(passed_over=1)
            return
        self._count_reaction(reacted=1)
        (reacted,) = decided.events
        await self._carry_out(key, decided.version, reacted.actions, depth)

    def _decide_reaction(self, instance: Instance, key: str, trigger: Trigger) -> Reacted | None:
        return self._definition.decide(instance, trigger, self._done.get(key, 0))

    async def _carry_out(
        self, key: str, version: int, actions: Sequence[StoredAction], depth: int
    ) -> None:
        """Carry a reaction's actions out, and react to what is refused of them."""
        refusals = []
        for index, action in enumerate(actions):
            sequence = sequence_of(version, index)
            match action:
                case StoredCommand():
                    cause = command_cause(self._definition.name, key, sequence)
                    reason = await self._definition.commands.carry_out(action, cause)
                    self._count_reaction(commands=reason is None, refused=reason is not None)
                    if reason is not None:
                        name = action.decision
                        event = Refused(action.aggregate, action.id, name, reason)
                        what = f"refused {action.aggregate} {name}"
                        refusals.append(Trigger(what, refusal_cause(sequence), event))
                case StoredTimeout():
                    await self._require_timeouts().schedule(key, action, sequence)
                case StoredCancel():
                    await self._require_timeouts().cancel(key, action)
        self._note_done(key, version)
        try:
            for trigger in refusals:
                await self._react(key, trigger, depth + 1)
        except BaseException:
            self._done.pop(key, None)  # whoever comes next begins with what is left
            raise

    def _require_timeouts(self) -> Any:
        found = self._definition.timeouts
        if found is None:
            raise CodeTooOld(
                f"{self._where}: a timeout is stored, and it declares timeouts= no more: declare "
                "them until none is waited for"
            )
        return found

    def _note_done(self, key: str, version: int) -> None:
        done = self._done
        done[key] = max(version, done.get(key, 0))
        done.move_to_end(key)
        if len(done) > MAX_DONE:
            done.popitem(last=False)
