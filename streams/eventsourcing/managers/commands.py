"""Commands of a process manager: how they are stored, and how each is carried out once.

A command is stored by the names of its aggregate and its decision, and its arguments as JSON. What
cannot be read back from that is refused before anything is stored.

Its effect happens once as it has a cause of its own, made of the manager, the instance, the version
of the reaction and the command's place in it. A decision that refuses, or that comes to nothing, is
recorded under that cause before anybody acts on it. A second record, written just before, notes
which of the two it was: whoever carries the command out again is told by the log. Where the state
changes between the two records, or several processes write them, there may be several notes. The
one of the lowest version is meant: one that is written later has a higher version, or says the
same, as a note is only written where the decision comes to what it says.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, NoReturn, cast

import msgspec

from stream_codecs import type_name
from streams.app import Streams
from streams.callables import is_async, shown_function
from streams.cancellation import run_in_thread
from streams.errors import CodeTooOld, ConfigError, InvalidValue, NotFound
from streams.eventsourcing.aggregate import Aggregate
from streams.eventsourcing.causes import cause_text
from streams.eventsourcing.declaration_checks import check_refusals
from streams.eventsourcing.definition import events_of
from streams.eventsourcing.errors import AggregateClosed, DecisionRefused, NamedRefusal
from streams.eventsourcing.managers.actions import Command
from streams.eventsourcing.managers.reactions import StoredCommand
from streams.log.events import EventLog, HistoryRequest

Decisions = Mapping[str, Callable[..., Any]] | Sequence[Callable[..., Any]]

CLOSED = AggregateClosed.__name__
"""Why a command is refused whose aggregate has had its final event."""

NOTHING = ""
"""Instead of a reason: the decision came to no event, and never will."""


class CommandOutcome(NamedTuple):
    """What became of a command.

    :param outcome: ``done``: it was carried out; ``refused``; ``nothing``: the decision came to no
        event; ``open``: none of these yet, as far as its aggregate's history says; ``unknown``.
    :param reason: of a refusal; of one that is open, ``"AggregateClosed"`` where it will be refused
        for that; why it is not known.
    :param first_version: of the events that it came to, and how many.
    """

    outcome: Literal["done", "refused", "nothing", "open", "unknown"]
    reason: str = ""
    first_version: int = 0
    event_count: int = 0


class UnknownCommand(InvalidValue, CodeTooOld):
    """A command that newer code has stored: for an aggregate or a decision that this code does not
    have, or with arguments that its decision does not take."""


class _CommandRefused(NamedRefusal):
    """The decision refuses, or comes to no event, and a note says so."""


class _ReasonNotNoted(Exception):
    """The decision refuses, or comes to no event, and the note that says so is still missing."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _ReasonNoted(NamedRefusal):
    """By this the decision that writes a note refuses: the record of its refusal is the note."""


class _ReasonOutdated(Exception):
    """The command's decision does not refuse for that reason any more."""


class _DecisionSignature(NamedTuple):
    """A decision that can be called.

    :param positional: decoders of what follows the state; None: as JSON has it.
    :param rest: the same of what the decision takes as ``*args``.
    :param named: the same by name.
    :param others: the same of what it takes as ``**kwargs``.
    """

    function: Callable[..., Any]
    signature: inspect.Signature
    positional: Sequence[Callable[[Any], Any]]
    rest: Callable[[Any], Any]
    named: Mapping[str, Callable[[Any], Any]]
    others: Callable[[Any], Any]


class Commands:
    """Stores and carries out the commands of one manager.

    :param decisions: functions, by the names under which they are stored; or under their own.
    :param refusals: exceptions by which a decision refuses.
    :raises ConfigError: these cannot work.
    """

    def __init__(self, app: Streams, name: str, decisions: Any, refusals: Any) -> None:
        self._app = app
        self._name = name
        self._where = f"process manager {name!r}"
        self._functions = self._check_decisions(decisions)
        self._names = {id(each): found for found, each in self._functions.items()}
        self._refusals = self._check_refusals(refusals)
        self.reasons = tuple(self._refusals)
        """Names of the exceptions by which a decision refuses."""
        self._refusal_types = tuple(self._refusals.values())
        self._known: dict[tuple[str, str], _DecisionSignature] = {}

    def _check_decisions(self, decisions: Any) -> dict[str, Callable[..., Any]]:
        problem = f"{self._where}: decisions={decisions!r}: functions, or functions by name"
        if isinstance(decisions, Mapping):
            found = dict(decisions)
        elif isinstance(decisions, (list, tuple)):
            found = {getattr(each, "__name__", ""): each for each in decisions}
            if len(found) != len(decisions):
                raise ConfigError(
                    f"{problem}; two have the same name: give them by names of your choice"
                )
        else:
            raise ConfigError(problem)
        for name, each in found.items():
            if not isinstance(name, str) or not name or not callable(each):
                raise ConfigError(problem)
            if is_async(each):
                raise ConfigError(f"{self._where}: decision {name!r} is async: decisions are plain")
        return found

    def _check_refusals(self, refusals: Any) -> dict[str, type[Exception]]:
        given = check_refusals(self._where, refusals, ConfigError)
        found = {each.__name__: each for each in given}
        if len(found) != len(given) or CLOSED in found:
            raise ConfigError(
                f"{self._where}: refusals= are told apart by their names, and two of "
                f"{', '.join([CLOSED, *(each.__name__ for each in given)])} are the same"
            )
        return found

    # -- storing

    def stored_command(self, command: Command) -> StoredCommand:
        """A command as it is stored.

        :raises InvalidValue: it cannot be, or could not be carried out.
        """
        aggregate = command.aggregate
        if (
            not isinstance(aggregate, Aggregate)
            or self._app.aggregates.get(aggregate.name) is not aggregate
        ):
            raise InvalidValue(
                f"{self._where}: {aggregate!r} is no aggregate of its app as it was declared; what "
                "with_options() returns cannot be stored"
            )
        if not isinstance(command.id, str) or not command.id:
            raise InvalidValue(f"{self._where}: {command!r}: an aggregate's ID is a non-empty str")
        name = self._name_of(aggregate, command.decision)
        try:
            args = tuple(msgspec.Raw(msgspec.json.encode(each)) for each in command.args)
            kwargs = {
                each: msgspec.Raw(msgspec.json.encode(value))
                for each, value in command.kwargs.items()
            }
            stored = StoredCommand(aggregate.name, command.id, name, args, kwargs)
            decision = self._find_decision(aggregate, name)
            read_args, read_kwargs = _read_arguments(decision, stored)
        except (TypeError, ValueError, msgspec.MsgspecError, RecursionError) as error:
            raise InvalidValue(f"{self._where}: {command!r} cannot be stored: {error}") from error
        if read_args != command.args or read_kwargs != command.kwargs:
            raise InvalidValue(
                f"{self._where}: the arguments of {command!r} are others once they were stored, "
                f"{read_args!r} {read_kwargs or ''}: annotate the decision's parameters with their "
                "types"
            )
        return stored

    def _name_of(self, aggregate: Aggregate[Any, Any], decision: Any) -> str:
        name = self._names.get(id(decision))
        if name is not None and self._functions[name] is decision:
            return name
        name = getattr(decision, "__name__", "")
        if name and getattr(_state_class(aggregate), name, None) is decision:
            return str(name)
        shown = shown_function(decision)
        raise InvalidValue(
            f"{self._where}: decision {shown} of aggregate {aggregate.name!r} is no method of its "
            f"state, so it has no name under which it can be stored: ProcessManager(..., "
            f"decisions=[{shown}])"
        )

    def _find_decision(self, aggregate: Aggregate[Any, Any], name: str) -> _DecisionSignature:
        """The decision of that name.

        :raises InvalidValue: there is none, or its annotations cannot be read.
        """
        found = self._known.get((aggregate.name, name))
        if found is not None:
            return found
        function = self._functions.get(name)
        if function is None:
            function = getattr(_state_class(aggregate), name, None)
        if not callable(function):
            raise UnknownCommand(
                f"{self._where}: cannot carry out a command for the decision {name!r} of aggregate "
                f"{aggregate.name!r}: it has no decision of that name: "
                f"ProcessManager(..., decisions={{{name!r}: ...}})"
            )
        try:
            found = _inspect_decision(function)
        except (NameError, TypeError, ValueError) as error:
            raise InvalidValue(
                f"{self._where}: decision {name!r}: its annotations cannot be read: {error}"
            ) from error
        self._known[aggregate.name, name] = found
        return found

    # -- carrying out

    async def carry_out(self, command: StoredCommand, cause: str) -> str | None:
        """Take a command's decision, unless it was taken before.

        :param cause: the command's own.
        :returns: why it is refused, for ever; None: it is not.
        :raises UnknownCommand: newer code has stored it, or noted why it is refused.
        :raises Exception: the decision fails, or the log does.
        """
        aggregate = self._aggregate_of(command)
        is_noted = False
        """Whether a note has the reason, so that the decision may refuse."""

        def decide(state: Any) -> Any:
            found, reason = self._take_decision(aggregate, command, state)
            if reason is None:
                return found
            raise _CommandRefused(reason) if is_noted else _ReasonNotNoted(reason)

        options = aggregate.with_options(cause=cause, refusals=_CommandRefused)
        while True:
            try:
                await options.decide(command.id, decide)
            except DecisionRefused:
                # The log has the reason, for everybody: another process may have noted one before.
                outcome = await self._read_outcome(command, cause)
                if outcome.outcome == "unknown":
                    raise UnknownCommand(
                        f"{self._where}: the command {command.decision!r} for "
                        f"{aggregate.name!r} {command.id!r} was refused, {outcome.reason}"
                    ) from None
                if outcome.outcome != "open":  # else the log has lost what was told
                    return outcome.reason or None
                is_noted = False
            except AggregateClosed:
                return CLOSED
            except _ReasonNotNoted as found:
                is_noted = await self._note_reason(aggregate, command, cause, found.reason)
            else:
                return None

    async def _read_outcome(self, command: StoredCommand, cause: str) -> CommandOutcome:
        log: Any = self._app.log
        if log.never_blocks:
            return self.inspect_outcome(log, command, cause)
        return await run_in_thread(self.inspect_outcome, log, command, cause)

    def _take_decision(
        self, aggregate: Aggregate[Any, Any], command: StoredCommand, state: Any
    ) -> tuple[Any, str | None]:
        """What a command's decision returns, and why it refuses; None: it does not."""
        decision = self._find_decision(aggregate, command.decision)
        try:
            args, kwargs = _read_arguments(decision, command)
        except (TypeError, ValueError, msgspec.MsgspecError) as error:
            raise UnknownCommand(
                f"{self._where}: cannot carry out a command for the decision {command.decision!r} "
                f"of aggregate {aggregate.name!r}: its arguments do not fit that decision: {error}"
            ) from error
        try:
            found = decision.function(state, *args, **kwargs)
        except self._refusal_types as error:
            return None, self._reason_of(error)
        if not events_of(aggregate.name, found):
            return None, NOTHING
        return found, None

    def _aggregate_of(self, command: StoredCommand) -> Aggregate[Any, Any]:
        found = self._app.aggregates.get(command.aggregate)
        if found is None:
            raise UnknownCommand(
                f"{self._where}: cannot carry out a command for aggregate {command.aggregate!r}: "
                "its app declares no aggregate of that name"
            )
        return cast("Aggregate[Any, Any]", found)

    def _reason_of(self, error: Exception) -> str:
        return next(name for name, kind in self._refusals.items() if isinstance(error, kind))

    async def _note_reason(
        self, aggregate: Aggregate[Any, Any], command: StoredCommand, cause: str, reason: str
    ) -> bool:
        """Write a note of why a command is about to be refused; False: it would not be refused for
        that reason any more."""

        def note(state: Any) -> NoReturn:
            _, found = self._take_decision(aggregate, command, state)
            raise _ReasonNoted(reason) if found == reason else _ReasonOutdated

        options = aggregate.with_options(cause=_note_cause(cause, reason), refusals=_ReasonNoted)
        try:
            await options.decide(command.id, note)
        except _ReasonOutdated:
            return False
        except (DecisionRefused, AggregateClosed):
            pass
        return True

    # -- looking

    @property
    def named(self) -> tuple[str, ...]:
        """The names of its ``decisions=``."""
        return tuple(self._functions)

    def inspect_outcome(self, log: EventLog, command: StoredCommand, cause: str) -> CommandOutcome:
        """What became of a command; blocks, and writes nothing.

        :param cause: the command's own.
        :raises LogError: its aggregate's history cannot be read.
        """
        aggregate = self._app.aggregates.get(command.aggregate)
        if not isinstance(aggregate, Aggregate):
            return CommandOutcome("unknown", "the app declares no such aggregate")
        key = command.id.encode("utf-8", "surrogateescape")
        notes = [*self._refusals, NOTHING]
        causes = [cause, *(_note_cause(cause, reason) for reason in notes)]
        requests = [HistoryRequest(key, limit=1, cause=each) for each in causes]
        try:
            first, *noted = log.read_histories(aggregate.events.name, requests)
        except NotFound:
            return CommandOutcome("open")
        if first.caused is None:
            return CommandOutcome("open", CLOSED if first.head.is_final else "")
        if first.caused.event_count:
            return CommandOutcome("done", "", *first.caused)
        found = [
            (note.caused.first_version, reason)
            for reason, note in zip(notes, noted, strict=True)
            if note.caused is not None
        ]
        if not found:  # noted by newer code
            return CommandOutcome("unknown", "for a reason that is not one of refusals=")
        reason = min(found)[1]
        return CommandOutcome("refused" if reason else "nothing", reason)


def _note_cause(cause: str, reason: str) -> str:
    return cause_text(f"{cause}={reason}")


def _state_class(aggregate: Aggregate[Any, Any]) -> type[Any]:
    return type(aggregate.definition.state_type.initial)


def _inspect_decision(function: Callable[..., Any]) -> _DecisionSignature:
    """How a decision's arguments are read. What its state is, and what it returns, is not looked
    at: their names need not be there when it runs."""
    positional: list[Callable[[Any], Any]] = []
    named: dict[str, Callable[[Any], Any]] = {}
    rest = others = _argument_decoder(Any)
    known = getattr(inspect.unwrap(function), "__globals__", {})
    signature = inspect.signature(function)
    _, *parameters = signature.parameters.values()
    for each in parameters:
        read = _argument_decoder(_resolve_type(each, known))
        if each.kind is each.VAR_POSITIONAL:
            rest = read
        elif each.kind is each.VAR_KEYWORD:
            others = read
        else:
            if each.kind is not each.KEYWORD_ONLY:
                positional.append(read)
            if each.kind is not each.POSITIONAL_ONLY:
                named[each.name] = read
    return _DecisionSignature(function, signature, positional, rest, named, others)


def _resolve_type(parameter: inspect.Parameter, known: dict[str, Any]) -> Any:
    """A parameter's type, with what it says beside it (``Annotated``)."""
    if parameter.annotation is parameter.empty:
        return Any
    alone = type("_", (), {"__annotations__": {"found": parameter.annotation}})
    return typing.get_type_hints(alone, known, include_extras=True)["found"]


def _argument_decoder(hint: Any) -> Callable[[Any], Any]:
    if isinstance(hint, typing.TypeVar):
        hint = Any
    try:
        return msgspec.json.Decoder(hint).decode
    except TypeError as error:
        raise TypeError(f"{type_name(hint)}: {error}") from error


def _read_arguments(
    decision: _DecisionSignature, command: StoredCommand
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A stored command's arguments.

    :raises TypeError: they are none that its decision takes.
    :raises msgspec.MsgspecError: one of them cannot be read as the decision has it.
    """
    known = decision.positional
    args = tuple(
        (known[index] if index < len(known) else decision.rest)(each)
        for index, each in enumerate(command.args)
    )
    kwargs = {
        name: decision.named.get(name, decision.others)(each)
        for name, each in command.kwargs.items()
    }
    decision.signature.bind(None, *args, **kwargs)
    return args, kwargs
