"""What is stored of a process manager: a history of reactions for each instance.

A process manager is an aggregate. Each event of an instance is a *reaction*: the state after it and
the actions that it came to, as they are to be carried out. So a restart goes by what was stored,
whatever the function would answer today.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from streams.eventsourcing.causes import cause_text

REFUSED = "refused/"
"""How the causes of reactions to refusals begin; those of others begin otherwise."""


class StoredCommand(msgspec.Struct, frozen=True, tag="command"):
    """A command.

    :param args: JSON of each.
    """

    aggregate: str
    id: str
    decision: str
    args: tuple[msgspec.Raw, ...] = ()
    kwargs: dict[str, msgspec.Raw] = {}


class StoredTimeout(msgspec.Struct, frozen=True, tag="schedule"):
    """A timeout that begins.

    :param due: in milliseconds since the epoch.
    :param event: as JSON.
    """

    name: str
    due: int
    event: msgspec.Raw


class StoredCancel(msgspec.Struct, frozen=True, tag="cancel"):
    """A timeout that is not wanted any more.

    :param sequence: which of that name.
    """

    name: str
    sequence: str


StoredAction = StoredCommand | StoredTimeout | StoredCancel


class Reacted(msgspec.Struct, frozen=True, tag="reacted"):
    """The instance has reacted to something.

    :param to: what it was, for those who read the history.
    :param state: after it, as JSON.
    :param fired: the name of the timeout that it was; empty: it was none.
    :param ends: the instance has ended.
    """

    to: str
    state: msgspec.Raw
    actions: tuple[StoredAction, ...] = ()
    fired: str = ""
    ends: bool = False


class Timer(msgspec.Struct, frozen=True):
    """A timeout that is waited for.

    :param sequence: tells it from others of its name: which action of which reaction began it.
    :param event: as JSON.
    """

    sequence: str
    event: msgspec.Raw


class Instance(msgspec.Struct, frozen=True):
    """An instance after its reactions.

    :param version: how many there are.
    :param state: as JSON; without meaning at version 0.
    :param timers: by name.
    :param actions: of the last reaction.
    """

    version: int = 0
    state: msgspec.Raw = msgspec.Raw(b"null")
    timers: Mapping[str, Timer] = {}
    actions: tuple[StoredAction, ...] = ()
    has_ended: bool = False


def sequence_of(version: int, index: int) -> str:
    """The sequence of the timeout that an action begins; of a command, what its cause ends with."""
    return f"{version}.{index}"


def command_cause(manager: str, key: str, sequence: str) -> str:
    """Under which the decision of an instance's command is taken."""
    return cause_text(f"{manager}/{key}/{sequence}")


def refusal_cause(sequence: str) -> str:
    """Under which the reaction to the refusal of a command is recorded."""
    return f"{REFUSED}{sequence}"


def evolve(instance: Instance, reacted: Reacted) -> Instance:
    """An instance after a reaction."""
    version = instance.version + 1
    timers = dict(instance.timers)
    timers.pop(reacted.fired, None)
    for index, action in enumerate(reacted.actions):
        match action:
            case StoredTimeout():
                timers[action.name] = Timer(sequence_of(version, index), action.event)
            case StoredCancel():
                # One that was replaced in the same reaction goes before the one that replaces it.
                timer = timers.get(action.name)
                if timer is not None and timer.sequence == action.sequence:
                    del timers[action.name]
            case StoredCommand():
                pass
    if reacted.ends:
        timers = {}
    return Instance(version, reacted.state, timers, reacted.actions, reacted.ends)
