"""A process manager as it was declared, and what its function answers; without a log."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple

import msgspec
from typing_extensions import TypeVar

from stream_codecs import Json, type_name
from streams.callables import call_error, is_plain, shown_function
from streams.errors import CodeTooOld, ConfigError, InvalidValue
from streams.eventsourcing.declaration_checks import check_app
from streams.eventsourcing.managers.actions import Action, Cancel, Command, End, Schedule
from streams.eventsourcing.managers.commands import Commands
from streams.eventsourcing.managers.reactions import (
    Instance,
    Reacted,
    StoredAction,
    StoredCancel,
    sequence_of,
)
from streams.eventsourcing.managers.timeouts import ManagerTimeouts
from streams.eventsourcing.state_type import StateType
from streams.numbers import is_int
from streams.text import printable_text

S = TypeVar("S")

React = Callable[[Any, Any], "tuple[Any, Sequence[Action]]"]


class Trigger(NamedTuple):
    """What an instance reacts to.

    :param what: in words, for those who read the history.
    :param cause: under which its reaction is recorded.
    :param event: what the function is called with; of a timeout, found in the instance.
    :param timeout: its name and sequence; None: it is none.
    """

    what: str
    cause: str
    event: Any
    timeout: tuple[str, str] | None = None


class UnreadableState(InvalidValue, CodeTooOld):
    """A state that other code has stored, and that this code cannot read."""


class UnfinishedReaction(Exception):
    """The last reaction's actions have to be carried out first."""

    def __init__(self, instance: Instance) -> None:
        super().__init__()
        self.instance = instance


class ManagerDefinition(Generic[S]):
    """One manager. :raises ConfigError: it cannot work."""

    def __init__(
        self,
        app: Any,
        name: str,
        state: type[S],
        react: Any,
        topics: Sequence[Any],
        key: Any,
        initial: S | None,
        timeouts: Any,
        decisions: Any,
        refusals: Any,
        partitions: int,
    ) -> None:
        self.where = f"process manager {name!r}"
        check_app(self.where, app)
        if not isinstance(name, str):
            raise ConfigError(f"{self.where}: its name is a str")
        if not topics:
            raise ConfigError(
                f"{self.where}: give at least one topic: app.topic(...) or aggregate.events"
            )
        _check_function(self.where, "react", react, 2, "(state, event)")
        if key is None:
            raise ConfigError(
                f"{self.where}: key=None: a function of the event that says which instance it is "
                "for, or None for none"
            )
        _check_function(self.where, "key", key, 1, "(event)")
        if not is_int(partitions, 1):
            raise ConfigError(
                f"{self.where}: partitions={partitions!r}: must be a positive integer"
            )
        self.app = app
        self.name = name
        self.react: React = react
        self.key: Callable[[Any], Any] = key
        self.state: StateType[S] = StateType(name, state, initial, Json())
        self._state_class = type(self.state.initial)
        try:
            self.state.decode(self.state.encode(self.state.initial))
        except Exception as error:
            raise ConfigError(
                f"{self.where}: its state {type_name(state)} cannot be kept as JSON: {error}"
            ) from error
        self.commands = Commands(app, name, decisions, refusals)
        self.timeouts = (
            None if timeouts is None else ManagerTimeouts(app, name, timeouts, partitions)
        )

    def key_of(self, event: Any) -> str | None:
        """Which instance an event is for.

        :raises TypeError: the function says neither a key nor None.
        """
        key = self.key(event)
        if key is None or (isinstance(key, str) and key):
            return key
        raise TypeError(f"{self.where}: key= returned {key!r}: a non-empty str, or None")

    def read_state(self, instance: Instance) -> S:
        """An instance's state.

        :raises UnreadableState: it cannot be read.
        """
        if not instance.version:
            return self.state.initial
        found = self.state.decode(bytes(instance.state))
        if found is None:
            raise UnreadableState(
                f"{self.where}: a stored state is not a valid {type_name(self._state_class)} any "
                "more: give new fields a default, and keep the existing ones"
            )
        state: S = found.state
        return state

    def decide(self, instance: Instance, trigger: Trigger, done: int) -> Reacted | None:
        """How an instance reacts; None: it passes it over.

        :param done: the version up to which actions were carried out.
        :raises UnfinishedReaction: the actions of the last version were not.
        """
        if instance.has_ended:
            return None
        event, fired = trigger.event, ""
        if trigger.timeout is not None:
            name, sequence = trigger.timeout
            timer = instance.timers.get(name)
            if timer is None or timer.sequence != sequence or self.timeouts is None:
                return None
            event, fired = self.timeouts.read(timer.event), name
        if done < instance.version:
            raise UnfinishedReaction(instance)
        answer = self.react(self.read_state(instance), event)
        state, actions = self._check_answer(answer, event)
        stored, ends = self._store_actions(instance, actions, fired)
        data = msgspec.Raw(self.state.encode(state))
        return Reacted(printable_text(trigger.what), data, stored, fired, ends)

    def _check_answer(self, answer: Any, event: Any) -> tuple[Any, Sequence[Action]]:
        problem, found = "", answer
        if inspect.iscoroutine(answer):
            answer.close()
            problem = "a coroutine: it is a plain function"
        elif not isinstance(answer, tuple) or len(answer) != 2:
            problem = f"{answer!r}"
        elif not isinstance(answer[0], self._state_class):
            problem = f"a state of type {type_name(type(answer[0]))}"
        elif not isinstance(answer[1], (list, tuple)):
            problem = f"actions {answer[1]!r}"
        else:
            wrong = [each for each in answer[1] if not isinstance(each, Action)]
            problem = f"the action {wrong[0]!r}" if wrong else ""
        if problem:
            raise TypeError(
                f"{self.where}: react returned {problem} for {event!r}; it has to return "
                f"({type_name(self._state_class)}, [Command | Schedule | Cancel | End, ...])"
            )
        return found[0], found[1]

    def _store_actions(
        self, instance: Instance, actions: Sequence[Action], fired: str
    ) -> tuple[tuple[StoredAction, ...], bool]:
        version = instance.version + 1
        pending = {name: timer.sequence for name, timer in instance.timers.items() if name != fired}
        ends = any(isinstance(each, End) for each in actions)
        stored: list[StoredAction] = []

        def cancel(name: str) -> None:
            if (sequence := pending.pop(name, None)) is not None:
                stored.append(StoredCancel(name, sequence))

        for action in actions:
            match action:
                case Command():
                    stored.append(self.commands.stored_command(action))
                case Schedule():
                    if self.timeouts is None or ends:
                        advice = "beside End() it would never come"
                        if self.timeouts is None:
                            advice = "say which events there are: ProcessManager(..., timeouts=...)"
                        raise InvalidValue(f"{self.where}: {action!r}: {advice}")
                    timeout = self.timeouts.stored_timeout(action)
                    cancel(timeout.name)
                    pending[timeout.name] = sequence_of(version, len(stored))
                    stored.append(timeout)
                case Cancel():
                    cancel(action.name)
                case End():
                    pass
        if ends:
            for name in list(pending):
                cancel(name)
        return tuple(stored), ends


def _check_function(where: str, option: str, function: Any, count: int, called: str) -> None:
    """:raises ConfigError: this cannot be called so."""
    what = f"{where}: {option}={shown_function(function)}"
    if not callable(function):
        raise ConfigError(f"{what}: a function of {called}")
    if not is_plain(function):
        raise ConfigError(
            f"{what}: it must be a plain function, which only answers: what it is to do belongs "
            "into commands, what it has to know into the state"
        )
    error = call_error(function, *[None] * count)
    if error is not None:
        raise ConfigError(f"{what}: it is called as {called}: {error}") from error
