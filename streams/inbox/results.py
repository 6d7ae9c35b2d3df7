"""Results: writes the return values of a handler with ``to=`` into an outbox, in the handler's
transaction.

The log and the user's database have no transaction in common. So the results of such a handler do
not go to the log: they become rows of an *outbox*, in the transaction that has the handler's effect
and the record that its message was handled. The outbox's relay publishes them once that is
committed. Their message IDs are those that ``to=`` always derives from the source message.

An outbox is declared in the layer above (:class:`streams.Outbox`); this module has the protocol
that it must satisfy, chooses the outbox, and creates its tables if they are missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from streams.databases.protocol import (
    Database,
    DialectName,
    EndedByHandler,
    Steps,
    SwallowedError,
    is_in_failed_transaction,
)
from streams.derived_records import DerivedResult, result_rule
from streams.errors import ConfigError
from streams.inbox.calls import Access, Calls
from streams.inbox.failures import Failures
from streams.message import Message, identity_suffix, row_of
from streams.processing.job import Decoding
from streams.text import describe_error
from streams.topic import Topic


class NoTransaction(ConfigError):
    """No transaction is open on a connection, so a row would be published even if the caller's work
    is not committed."""


class ResultOutbox(Protocol):
    """The part of an outbox that handlers' results use."""

    name: str

    def was_given(self, database: Database[Any]) -> bool:
        """Whether the outbox's declaration names this very database."""
        ...

    def is_in(self, database: Database[Any]) -> bool:
        """Whether the outbox is in that database, as far as the addresses show it."""
        ...

    def find_table(self, dialect: DialectName) -> Steps[bool]:
        """Whether the outbox's table exists where the statements run."""
        ...

    def create_tables_there(self, dialect: DialectName) -> Steps[None]:
        """Create the outbox's tables where the statements run, which must be the first ones of
        their transaction."""
        ...

    def write_results(
        self, connection: Any, topic: Topic[Any], results: Sequence[DerivedResult]
    ) -> None:
        """Write rows in the transaction that is open on a plain connection.

        :raises NoTransaction: none is open there.
        :raises EncodeError: a value does not fit the topic's type.
        :raises TooLarge: a row is larger than the outbox allows.
        :raises InvalidValue: a row has a key that does not fit.
        """
        ...

    async def write_results_async(
        self, connection: Any, topic: Topic[Any], results: Sequence[DerivedResult]
    ) -> None:
        """As :meth:`write_results`, on a connection whose statements are awaited."""
        ...


def choose_outbox(
    outboxes: Iterable[ResultOutbox], database: Database[Any], where: str
) -> ResultOutbox:
    """The outbox for the results of a processor with this database.

    :param where: the beginning of the error's text.
    :raises ConfigError: there is none, or more than one.
    """
    declared = list(outboxes)
    found = [each for each in declared if each.was_given(database)]
    found = found or [each for each in declared if each.is_in(database)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(repr(each.name) for each in found)
        raise ConfigError(
            f"{where}: the outboxes {names} are all in that database; have one of them alone say "
            "transaction=database, as Outbox(app, ..., transaction=database)"
        )
    if database.address() is None:
        declaration = "Outbox(app, 'postgresql://...', transaction=database)"
        why = ", with the address for its relay and the database that the processor has"
    else:
        declaration, why = "Outbox(app, database)", ", with the database that the processor has"
    problem = "the app has none" if not declared else "none of the app's is known to be there"
    raise ConfigError(
        f"{where}: what the handler returns is published with its transaction, by an outbox in the "
        f"same database, and {problem}: declare outbox = {declaration}{why}"
    )


class ChosenOutbox:
    """The outbox for the results of one processor: it is chosen when the database is opened.

    :param outboxes: the app's outboxes, by name.
    :param target: the topic of the results; None: the processor has none.
    """

    def __init__(
        self,
        access: Access,
        failures: Failures,
        outboxes: Mapping[str, ResultOutbox],
        processor_name: str,
        target: Topic[Any] | None,
    ) -> None:
        self._access = access
        self._failures = failures
        self._outboxes = outboxes
        self._processor_name = processor_name
        self._target = target
        self._chosen: ResultOutbox | None = None

    def choose(self) -> None:
        """Choose the outbox, if the processor has results.

        :raises ConfigError: there is none, or more than one.
        """
        if self._target is not None:
            database = self._access.database
            self._chosen = choose_outbox(
                self._outboxes.values(),
                database,
                f"processor {self._processor_name}: to={self._target.name!r} with "
                f"transaction={database.name}(...)",
            )

    def get(self) -> ResultOutbox:
        """The outbox, which is known once there can be a transaction."""
        if self._chosen is None:
            raise RuntimeError("there is no outbox before the inbox is open")
        return self._chosen

    def create_tables(self) -> Calls[None]:
        """Create the outbox's tables if they are missing.

        :raises ConfigError: they cannot be created, or must not be.
        """
        outbox, access = self._chosen, self._access
        if outbox is None or (yield from access.run_in_transaction(outbox.find_table)):
            return
        name = access.database.name
        if not access.database.create:
            raise ConfigError(
                f"transaction={name}(create=False): the table of the outbox {outbox.name!r} is "
                "missing there; await outbox.create_tables() makes it, or what outbox.schema() "
                "gives, in a migration"
            )
        try:
            yield from access.run_in_transaction(outbox.create_tables_there)
        except Exception as error:
            if self._failures.may_pass(error):
                raise
            raise ConfigError(
                f"transaction={name}: the tables of the outbox {outbox.name!r} are missing there "
                f"and cannot be made ({describe_error(error)}); ask an administrator to run the "
                "statements of outbox.schema()"
            ) from error


class Results:
    """Writes the results of one job.

    :param outbox: the outbox into which they are written.
    :param name: the processor's name.
    :param target: the topic of the results.
    :param decodings: the decodings of the topics that the job reads.
    """

    def __init__(
        self,
        access: Access,
        outbox: ChosenOutbox,
        name: str,
        group: str,
        target: Topic[Any],
        decodings: Mapping[str, Decoding],
    ) -> None:
        self._access = access
        self._outbox = outbox
        self._name = name
        self._target = target
        self._rule = result_rule(group, target.type)
        self._decodings = decodings

    # -- what they are

    def of_message(self, result: Any, value: Any, message: Message[Any]) -> list[DerivedResult]:
        """The results of a handler; if it returned a generator, its code runs here."""
        if result is None:
            return []
        batch, index = row_of(message)
        identity = batch.ids[index]
        decoding = self._decodings.get(batch.topic)
        if decoding is not None and decoding.id_reader is not None:
            # As in the engine, an ID in the value takes precedence over a header.
            identity = decoding.id_reader(value) + identity_suffix(identity)
        return self._rule.results_of(result, batch, index, identity)

    def of_batch(
        self, results: Any, values: Sequence[Any], messages: Sequence[Message[Any]]
    ) -> list[DerivedResult]:
        """The results of a batch handler.

        :raises ValueError: there are more or fewer results than messages.
        """
        if results is None:
            return []
        found = list(results)
        if len(found) != len(messages):
            raise ValueError(
                f"{self._name} returned {len(found)} results for a batch of {len(messages)} "
                "messages: return one for each, None for nothing"
            )
        rows = zip(found, values, messages, strict=True)
        return [each for row in rows for each in self.of_message(*row)]

    # -- into the outbox

    def write(self, connection: Any, results: Sequence[DerivedResult]) -> Calls[None]:
        """Write the results in a handler's transaction.

        :raises EndedByHandler: the handler has ended it.
        :raises SwallowedError: a statement of the handler has failed, and nothing can be written
            any more.
        """
        if not results:
            return
        outbox = self._outbox.get()
        write = outbox.write_results_async if self._access.asynchronous else outbox.write_results
        try:
            yield write(connection, self._target, results)
        except NoTransaction as error:
            raise EndedByHandler(f"{self._access.database.name}(...)") from error
        except Exception as error:
            if is_in_failed_transaction(error):
                raise SwallowedError from error
            raise
