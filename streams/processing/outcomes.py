"""Calls handlers and deals with the outcomes: settling, retrying, dead-lettering, writing results.

:class:`MessageCalls` calls handlers of single messages, :class:`BatchCalls` those of batches. An
executor has one of them, chosen when it is made, and runs each *unit* (a message, or a batch)
through the same steps: ``take_unit``, ``admit``, ``decode``, ``call``, ``commit`` and
``record_result``. ``decode``, ``call`` and ``commit`` may run anywhere, the others where the
dispatcher may be touched.

Nothing waits for a write: what a handler returned and dead letters are sent with a callback, and
until it comes the message's key stays in flight and the message unsettled. In an exactly-once
processor they are put aside, for a transaction with the positions
(:mod:`streams.processing.pending_outputs`), and their keys go on at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from asyncio import CancelledError
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from random import random
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import msgspec
from msgspec.structs import replace
from typing_extensions import override

from streams.engine.deferring_dispatcher import DeferringDispatcher
from streams.engine.dispatcher import Delivery, Dispatcher, StateAndKey, state_and_key
from streams.engine.progress import FetchedBatch
from streams.engine.retry import retry_delay
from streams.errors import (
    BatchError,
    Fenced,
    LogError,
    RetryAfter,
    Unavailable,
    find_code_too_old,
    find_config_error,
)
from streams.log.protocol import Assignment
from streams.message import Message, Position, make_message
from streams.processing.handler_transaction import HandlerTransaction
from streams.processing.job import (
    AttemptLog,
    BeforeDeadLetter,
    DeadLetterAnswer,
    Job,
    OnWritten,
    Outgoing,
    Skip,
    UndecodableValue,
    WriteAnswers,
    check_headers,
)
from streams.text import count_with_noun, get_logger

logger = get_logger("streams")

Unit = TypeVar("Unit")
"""The unit of one handler call: a :class:`Delivery`, or a list of them."""

Handler: TypeAlias = "Callable[..., Any]"
Errors: TypeAlias = "Mapping[int, BaseException]"
"""Failures of a batch, by index into it."""


class OwnershipLost(Fenced):
    """A handler's transaction was rolled back because its partition is another member's now."""


class TransactionPostponed(Unavailable):
    """A handler's transaction was rolled back because the log could not be reached."""


TRANSACTION_PAUSE = 1.0
"""Seconds before such a message is handled again; it uses up no attempt."""

WRITE_PAUSE = 1.0
"""Seconds before a dead letter that was refused is written again (times 2 each time, to 60)."""


HELD_BACK_REPORT = 60.0
"""Seconds between two log lines that messages are held back for newer code."""


class NotCalled(NamedTuple):
    """What ``decode`` returns where the handler is not to be called."""

    settle: Callable[[], None]
    """Settles, retries or dead-letters the unit."""


class DecodedBatch(NamedTuple):
    """A batch as far as its handler is called with it, by index into the deliveries."""

    accepted: list[int]
    """Given to the handler, in this order."""
    values: list[Any]
    """Their decoded values."""
    skipped: list[int]
    """Not for this handler, or filtered out."""
    errors: dict[int, BaseException]
    """Not decodable, or their filter raised."""
    undecodable: set[int]
    """Those of ``errors`` that no attempt will change."""

    def of_accepted(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """The deliveries that are given to the handler."""
        return [deliveries[index] for index in self.accepted]


class Calls(ABC, Generic[Unit]):
    """How a job's handler is called, and what becomes of its messages.

    One class, though long: each outcome may turn into another (a result that is refused is a
    failure, a failure a dead letter), for single messages and for batches alike.
    """

    def __init__(
        self,
        job: Job,
        dispatcher: Dispatcher,
        call_soon: Callable[[Callable[[], None]], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        """
        :param call_soon: runs an action where the dispatcher may be touched (any thread).
        :param fail: ends the processor with an error.
        """
        self.job = job
        self.dispatcher = dispatcher
        self._call_soon = call_soon
        self._fail = fail
        self._now = job.clock.monotonic
        self._key_parking = job.key_parking
        self._accepts = job.filter
        self.settles_at_once = (
            job.batch is None and job.encode_results is None and job.key_parking is None
        )
        """A message is settled as soon as its handler has returned, by the dispatcher alone."""
        self.decodes_at_once = job.batch is None and job.filter is None and job.attempt_log is None
        """A message is handled if its value can be decoded."""
        self.admits_all = job.batch is None and job.key_parking is None
        """:meth:`admit` is to be asked only of what has a reason to be dead-lettered."""
        self._pipeline = self._pipeline_of(job, dispatcher)
        """Takes what a message was turned into, in an exactly-once processor."""
        self._reports_held_back_at = float("-inf")
        """When the log may be told again that messages are held back, in monotonic seconds."""
        self.unconfirmed = 0
        """Messages whose writes (results, dead letters) are not confirmed yet."""

    @staticmethod
    def _pipeline_of(
        job: Job, dispatcher: Dispatcher
    ) -> Callable[[Delivery, Sequence[Outgoing]], None] | None:
        outputs = job.outputs
        if outputs is None or not isinstance(dispatcher, DeferringDispatcher):
            return None
        append, mark_handled = outputs.append, dispatcher.mark_handled

        def put_aside(delivery: Delivery, outgoing: Sequence[Outgoing]) -> None:
            append(delivery, outgoing)
            mark_handled(delivery)

        return put_aside

    # -- the steps

    @abstractmethod
    def take_unit(self, now: float) -> Unit | None:
        """Take the next unit from the dispatcher; None: there is none."""

    @abstractmethod
    def admit(self, unit: Unit) -> Unit | None:
        """The part of the unit that is to be handled now. None: nothing, as it was dead-lettered,
        or parked because its key is closed; take the next one."""

    @abstractmethod
    def decode(self, unit: Unit) -> Any:
        """The decoded value or values for :meth:`call`, or :class:`NotCalled`."""

    @abstractmethod
    def call(
        self, function: Handler, unit: Unit, decoded: Any, transaction: HandlerTransaction | None
    ) -> Any:
        """Call the handler, ``function``; what it returns."""

    @abstractmethod
    def commit(
        self, transaction: HandlerTransaction, unit: Unit, decoded: Any
    ) -> BaseException | None:
        """Commit the transaction in which the handler ran; what went wrong, if so."""

    @abstractmethod
    def record_result(
        self, unit: Unit, decoded: Any, result: Any, failure: BaseException | None
    ) -> None:
        """The handler returned, or failed."""

    @abstractmethod
    def record_call_failure(self, unit: Unit, error: BaseException) -> None:
        """The handler failed, and it is not known how far it came."""

    @abstractmethod
    def abandon(self, unit: Unit) -> None:
        """The handler was stopped: its messages are not settled."""

    # -- one message

    def has_no_records(self, fetched: FetchedBatch) -> bool:
        """Nothing is kept of any of these messages that would have to be asked for, before one of
        them fails."""
        attempt_log, key_parking = self.job.attempt_log, self._key_parking
        return (attempt_log is None or attempt_log.has_no_records(fetched.batch)) and (
            key_parking is None or key_parking.no_key_closed(fetched)
        )

    def decode_one(self, fetched: FetchedBatch, index: int, *, again: bool = False) -> Any:
        """The value to be handled.

        :param again: decode it again, as an earlier call of the handler may have mutated it.
        :raises Skip: it is not for this handler.
        """
        attempt_log = self.job.attempt_log
        if attempt_log is not None and attempt_log.is_delayed(fetched.batch, index):
            raise Skip
        if fetched.decoded is not None:
            value = fetched.decoded[index]
            if isinstance(value, UndecodableValue):
                raise value.error
            if not again:
                return value
        elif fetched.decode is not None:
            try:
                return fetched.decode(fetched.values[index])
            except Exception:  # noqa: S110 - the careful way says what is wrong
                pass
        batch = fetched.batch
        if batch.unreadable:
            check_headers(batch, index)
        return self.job.decodings[batch.topic].decode_one(batch, index)

    def _attempt_log_of(self, delivery: Delivery) -> AttemptLog | None:
        """The log of this message's attempts; None for one that was parked behind a dead message:
        its attempts are not recorded."""
        key_parking = self._key_parking
        if key_parking is not None and key_parking.has_returned(delivery):
            return None
        return self.job.attempt_log

    def attempt_number(self, delivery: Delivery) -> int:
        """Which attempt this is, from 1; those before a restart count where the log knows them."""
        attempt_log = self._attempt_log_of(delivery)
        if attempt_log is None:
            return delivery.attempt
        return delivery.attempt + attempt_log.failed_attempts(
            delivery.fetched.batch, delivery.index
        )

    def record_success(self, delivery: Delivery, result: Any) -> None:
        """The handler returned."""
        if self.job.encode_results is not None and result is not None:
            try:
                outgoing = self.job.encode_results(
                    result, delivery.fetched.batch, delivery.index, delivery.identity
                )
            except Exception as error:
                self.record_failure(delivery, error)
                return
            if outgoing and self._pipeline is not None:
                self._pipeline(delivery, outgoing)
                return
            if outgoing:
                self._write((delivery,), outgoing, _ResultsWriteCallback(self, delivery))
                return
        self.settle(delivery)

    def settle(self, delivery: Delivery, *, filtered: bool = False) -> None:
        """The message was handled, or passed over, and what its handler returned is written."""
        mark = self.dispatcher.mark_filtered if filtered else self.dispatcher.mark_settled
        key_parking = self._key_parking
        if (
            key_parking is None
            or not key_parking.has_returned(delivery)
            or not delivery.fetched.state.is_owned
        ):
            mark(delivery)
            return
        # A message that was parked is settled by a record, not by its partition's progress.
        record = key_parking.handled_record(delivery)
        self._settle_when_written(
            delivery,
            record,
            mark,
            "%s: %s was handled, but its completion record could not be written: %r",
        )

    def _settle_when_written(
        self, delivery: Delivery, record: Outgoing, mark: Callable[[Delivery], None], complaint: str
    ) -> None:
        """Write what key parking has to say of a message, which is settled by that."""

        def refused(error: BaseException) -> None:
            if self._fail_on_config_error([delivery], {0: error}):
                return
            logger.error(complaint, self.job.name, location(delivery), error)
            self.dispatcher.deliver_at(delivery, self._now() + WRITE_PAUSE)

        self._write_outcome(delivery, record, mark, refused)

    def _write_outcome(
        self,
        delivery: Delivery,
        record: Outgoing,
        mark: Callable[[Delivery], None],
        refused: Callable[[BaseException], None],
    ) -> None:
        key_parking = self._key_parking

        def on_written(answers: WriteAnswers) -> None:
            answer = answers[0]
            if key_parking is not None and isinstance(answer, Fenced):
                # The partition is not owned any more: whoever does handles the message.
                key_parking.write_fenced(delivery)
                self.dispatcher.abandon(delivery)
            elif isinstance(answer, BaseException):
                if key_parking is not None:
                    key_parking.write_refused(delivery)
                refused(answer)
            elif key_parking is not None and not key_parking.write_confirmed(delivery):
                # The partition is another member's: what was written does not count.
                self.dispatcher.abandon(delivery)
            else:
                mark(delivery)

        owner = None if key_parking is None else delivery.fetched.state.assignment
        self._write([delivery], [record], on_written, owner=owner)

    def record_failure(self, delivery: Delivery, error: BaseException) -> None:
        """The handler raised, or what it returned cannot be written."""
        if isinstance(error, OwnershipLost):
            # The partition's new owner handles it: no failure, whatever the attempt.
            self.dispatcher.abandon(delivery)
            return
        if isinstance(error, TransactionPostponed):
            logger.warning("%s: rolled back %s: %s", self.job.name, location(delivery), error)
            self.dispatcher.deliver_at(delivery, self._now() + TRANSACTION_PAUSE)
            return
        if self._fail_on_config_error([delivery], {0: error}):
            return
        if self._is_for_newer_code(error):
            self._settle_failed([delivery], {0: error}, ())
            return
        if self._attempt_log_of(delivery) is not None:
            self._settle_batch([delivery], {0: error}, ())
            return
        rejected = self.dispatcher.mark_failed(delivery, error, self._now(), random())
        if rejected is None:
            self._log_attempt(delivery, error)
        else:
            self.dead_letter(rejected)

    def _log_attempt(self, delivery: Delivery, error: BaseException) -> None:
        attempt, attempts = delivery.attempt, self.job.retry.attempts
        name, where = self.job.name, location(delivery)
        if isinstance(error, RetryAfter):
            logger.info(
                "%s: attempt %d of %d postponed %s: %s", name, attempt, attempts, where, error
            )
        else:
            logger.info(
                "%s: attempt %d of %d failed for %s: %r", name, attempt, attempts, where, error
            )

    def _fail_on_config_error(self, deliveries: Sequence[Delivery], errors: Errors) -> bool:
        """End the processor if one of these failures (by index) is a
        :class:`~streams.errors.ConfigError`: it is the program that is wrong, not the message.
        Messages that failed stay unsettled."""
        config_errors = (
            (at, found) for at, each in errors.items() if (found := find_config_error(each))
        )
        index, found = next(config_errors, (-1, None))
        if found is None:
            return False
        logger.error(
            "%s: stopped, as no message can be handled like this; %s stays unsettled: %s",
            self.job.name, location(deliveries[index]), found, exc_info=found,
        )  # fmt: skip
        self._fail(found)
        self.dispatcher.mark_batch_settled(
            [delivery for at, delivery in enumerate(deliveries) if at not in errors]
        )
        for at in sorted(errors, reverse=True):
            self.dispatcher.abandon(deliveries[at])
        return True

    def reject_undecodable(self, delivery: Delivery, error: BaseException) -> None:
        """The message cannot be decoded: no attempt will change that."""
        if self._is_for_newer_code(error):
            self._settle_failed([delivery], {0: error}, ())
        elif not self._fail_on_config_error([delivery], {0: error}):
            self.dead_letter(self.dispatcher.reject(delivery, error))

    # -- what newer code has written

    def _is_for_newer_code(self, error: BaseException) -> bool:
        """This code is too old for the message, which waits for code that is not. A replay is of
        this code, and is told so at once."""
        return self.job.on_rejected is None and find_code_too_old(error) is not None

    def _report_held_back(self, delivery: Delivery, error: BaseException) -> None:
        now = self._now()
        if now < self._reports_held_back_at:
            return
        self._reports_held_back_at = now + HELD_BACK_REPORT
        others = self.dispatcher.held_back
        logger.error(
            "%s: this code is too old for %s%s: held back, with the later messages of its key, "
            "until newer code owns the partition: %s",
            self.job.name, location(delivery), f" and {others:,} more" if others else "", error,
        )  # fmt: skip

    # -- failures of some of a batch; of one message, where its attempts are counted in the log

    def _settle_batch(
        self, deliveries: Sequence[Delivery], errors: Errors, final: Collection[int]
    ) -> None:
        """Settle all but those that failed, by index; those in ``final`` are not tried again."""
        if not errors:
            key_parking = self._key_parking
            if key_parking is not None and key_parking.has_returned(deliveries[0]):
                self.settle(deliveries[0])  # what comes back is never batched
            else:
                self.dispatcher.mark_batch_settled(deliveries)
            return
        if self._fail_on_config_error(deliveries, errors):
            return
        attempt_log = self._attempt_log_of(deliveries[0])
        if attempt_log is not None:
            self._record_attempts(attempt_log, deliveries, errors, final)
        else:
            self._settle_failed(deliveries, errors, final)

    def _settle_failed(
        self, deliveries: Sequence[Delivery], errors: Errors, final: Collection[int]
    ) -> None:
        held_back = [index for index, each in errors.items() if self._is_for_newer_code(each)]
        for index in held_back[:1]:
            self._report_held_back(deliveries[index], errors[index])
        for rejected in self.dispatcher.mark_batch_failed(
            deliveries, errors, self._now(), random(), final, held_back
        ):
            self.dead_letter(rejected)

    def _record_attempts(
        self,
        attempt_log: AttemptLog,
        deliveries: Sequence[Delivery],
        errors: Errors,
        final: Collection[int],
    ) -> None:
        """Failures whose attempts are counted in the log: once that is written, those messages
        that wait elsewhere are settled, and the others wait in their key queue or are
        dead-lettered."""
        deliveries, failures, exhausted = list(deliveries), dict(errors), set(final)
        outgoing: list[Outgoing] = []
        delivery_indexes: list[int] = []
        delayed: set[int] = set()
        for index, error in errors.items():
            if self._is_for_newer_code(error):
                continue
            attempt = self.attempt_number(deliveries[index])
            deliveries[index] = delivery = replace(deliveries[index], attempt=attempt)
            delay = (
                None if index in final else retry_delay(self.job.retry, attempt, error, random())
            )
            if delay is None:
                exhausted.add(index)
                continue
            self._log_attempt(delivery, error)
            record = attempt_log.record_failure(delivery, attempt, delay)
            outgoing.append(record.outgoing)
            delivery_indexes.append(index)
            if record.is_delayed:
                delayed.add(index)

        def on_written(answers: WriteAnswers) -> None:
            notes: list[Outgoing] = []
            noted: list[int] = []
            for index, answer in zip(delivery_indexes, answers, strict=True):
                if index not in delayed:
                    report_note(answer)
                elif isinstance(answer, BaseException):
                    delayed.discard(index)
                    failures[index] = answer
                    exhausted.add(index)
                elif answer is not None:  # else it is settled in the same transaction
                    notes.append(attempt_log.delayed_note(deliveries[index], answer))
                    noted.append(index)
            if notes:
                self._write(deliveries, notes, on_noted, noted)
            else:
                settle()

        def on_noted(answers: WriteAnswers) -> None:
            for answer in answers:
                report_note(answer)
            settle()

        def report_note(answer: Position | BaseException | None) -> None:
            if isinstance(answer, BaseException):
                logger.error("%s: could not record an attempt: %r", self.job.name, answer)

        def settle() -> None:
            counts = self.dispatcher.counts
            for index in delayed:
                del failures[index]
                counts.retries += 1
                counts.handled -= 1  # it is settled here, and was not handled
            if failures:
                self._settle_failed(deliveries, failures, exhausted)
            else:
                self.dispatcher.mark_batch_settled(deliveries)

        if outgoing:
            self._write(deliveries, outgoing, on_written, delivery_indexes)
        else:
            self._settle_failed(deliveries, failures, exhausted)

    # -- keys that are closed behind a dead message

    def park_if_closed(self, delivery: Delivery) -> bool:
        """Whether the message is not to be handled now, because its key is closed."""
        key_parking = self._key_parking
        if key_parking is None:
            return False
        try:
            parking = key_parking.decide(delivery)
        except Unavailable:  # it cannot be known now: decide again later
            self.dispatcher.deliver_at(delivery, self._now() + WRITE_PAUSE)
            return True
        if parking is None:
            return False
        if parking.record is None:
            self._mark_parked(delivery)
            self.dispatcher.counts.duplicates += parking.is_duplicate
        else:
            self._settle_when_written(
                delivery, parking.record, self._mark_parked,
                "%s: cannot be parked behind a dead message of its key, retrying in "
                f"{WRITE_PAUSE:g} s: %s: %r",
            )  # fmt: skip
        return True

    def _mark_parked(self, delivery: Delivery) -> None:
        self.dispatcher.mark_settled(delivery)
        self.dispatcher.counts.handled -= 1

    # -- dead letters, and how they are written

    def dead_letter(self, delivery: Delivery) -> None:
        """Write the dead letter of a delivery that has a reason; the source is settled after
        that."""
        job, reason, key_parking = self.job, delivery.reason, self._key_parking
        if job.on_rejected is not None:
            job.on_rejected(delivery)
            return
        if reason is None or job.dead_letter is None:
            raise RuntimeError("nothing to dead-letter, or nowhere to write it")
        logger.warning(
            "%s: dead letter after %s: %s: %r",
            job.name, count_with_noun(reason.attempts, "attempt"), location(delivery),
            reason.error,
        )  # fmt: skip
        if key_parking is not None and not delivery.fetched.state.is_owned:
            self.dispatcher.abandon(delivery)  # whoever owns it now decides what becomes of its key
            return

        def refused(error: BaseException) -> None:
            if self._fail_on_config_error([delivery], {0: error}):
                return
            pause = min(60.0, WRITE_PAUSE * 2.0 ** min(reason.failed_writes, 10))
            logger.error(
                "%s: cannot write the dead letter of %s, retrying in %g s: %r",
                job.name, location(delivery), pause, error,
            )  # fmt: skip
            again = reason._replace(failed_writes=reason.failed_writes + 1)
            self.dispatcher.deliver_at(replace(delivery, reason=again), self._now() + pause)

        if job.before_dead_letter is not None:
            self._ask_before(job.before_dead_letter, delivery, refused)
        else:
            self._write_dead_letter(delivery, refused)

    def _ask_before(
        self,
        ask: BeforeDeadLetter,
        delivery: Delivery,
        refused: Callable[[BaseException], None],
    ) -> None:
        """Write the dead letter, or not, as the answer says."""
        state = delivery.fetched.state
        self.unconfirmed += 1
        state.unconfirmed += 1

        def on_answer(answer: DeadLetterAnswer | BaseException) -> None:
            self.unconfirmed -= 1
            state.unconfirmed -= 1
            if isinstance(answer, BaseException):
                refused(answer)
            elif answer is DeadLetterAnswer.SETTLE:
                self.dispatcher.mark_settled(delivery)
            elif answer is DeadLetterAnswer.ABANDON:
                self.dispatcher.abandon(delivery)
            else:
                self._write_dead_letter(delivery, refused)

        ask(delivery, lambda answer: self._call_soon(lambda: on_answer(answer)))

    def _write_dead_letter(
        self, delivery: Delivery, refused: Callable[[BaseException], None]
    ) -> None:
        job, key_parking = self.job, self._key_parking
        try:
            if job.dead_letter is None:
                raise RuntimeError("nowhere to write a dead letter")
            record = job.dead_letter(delivery)
            if key_parking is not None:
                record = key_parking.close_key(delivery, record)
        except Exception as error:
            refused(error)
            return
        self._write_outcome(delivery, record, self.dispatcher.mark_settled, refused)

    def _write(
        self,
        deliveries: Sequence[Delivery],
        outgoing: Sequence[Outgoing],
        on_written: OnWritten,
        delivery_indexes: Sequence[int] | None = None,
        owner: Assignment | None = None,
    ) -> None:
        """Write, and call ``on_written`` where the dispatcher may be touched once the log
        answered.

        :param delivery_indexes: of which delivery each record is, by index; None: of the only one.
        :param owner: the records may be written as its owner alone, where the log can check that.
        """
        outputs = self.job.outputs
        if outputs is not None:
            # Whatever the log says of them later, it says to the committer.
            outputs.add(
                deliveries, outgoing, delivery_indexes, lambda: on_written([None] * len(outgoing))
            )
            return
        write_derived = self.job.write_derived
        if write_derived is None:
            raise RuntimeError("this job has nothing to write with")
        self.unconfirmed += len(deliveries)
        for delivery in deliveries:
            delivery.fetched.state.unconfirmed += 1

        write_derived(
            outgoing, _WriteCallback(self, deliveries, on_written), self._call_soon, owner
        )

    # -- transactions

    def commit_transaction(
        self, transaction: HandlerTransaction, deliveries: Sequence[Delivery]
    ) -> BaseException | None:
        """Commit the handler's transaction with its messages' positions; what went wrong, if
        so."""
        try:
            transaction.commit(deliveries)
        except Fenced as error:
            logger.warning("%s: rolled back, the partition moved on: %r", self.job.name, error)
            for each in deliveries:  # start nothing more of it until the log has said what holds
                each.fetched.state.assignment.valid_until = float("-inf")
            return OwnershipLost(str(error))
        except Unavailable as error:
            return TransactionPostponed(str(error))
        except LogError as error:
            return error
        return None


class _WriteCallback(msgspec.Struct, gc=False):
    """Told how a write for some messages ended. There is one for each that is not confirmed yet, so
    the garbage collector must not look at it."""

    calls: Calls[Any]
    deliveries: Sequence[Delivery]
    on_written: OnWritten

    def __call__(self, answers: WriteAnswers) -> None:
        try:
            self.on_written(answers)  # which may write more: the partition is not idle in between
        finally:
            self.calls.unconfirmed -= len(self.deliveries)
            for delivery in self.deliveries:
                delivery.fetched.state.unconfirmed -= 1


class _ResultsWriteCallback(msgspec.Struct, gc=False):
    """Told how the results of one message were written."""

    calls: Calls[Any]
    delivery: Delivery

    def __call__(self, answers: WriteAnswers) -> None:
        for each in answers:
            if isinstance(each, BaseException):
                self.calls.record_failure(self.delivery, each)
                return
        self.calls.settle(self.delivery)


class MessageCalls(Calls[Delivery]):
    """The handler takes one message at a time."""

    @override
    def take_unit(self, now: float) -> Delivery | None:
        return self.dispatcher.take_next(now)

    @override
    def admit(self, unit: Delivery) -> Delivery | None:
        if unit.reason is not None:
            self.dead_letter(unit)
            return None
        return None if self.park_if_closed(unit) else unit

    @override
    def decode(self, unit: Delivery) -> Any:
        try:
            fetched = unit.fetched
            again = fetched.decoded is not None and _was_handled(unit)
            value = self.decode_one(fetched, unit.index, again=again)
        except Skip:
            return NotCalled(partial(self.settle, unit, filtered=True))
        except Exception as error:
            return NotCalled(partial(self.reject_undecodable, unit, error))
        if self._accepts is None:
            return value
        try:
            if self._accepts(value):
                return value
        except (Exception, CancelledError) as error:
            return NotCalled(partial(self.record_failure, unit, failure_of(error, self.job.name)))
        return NotCalled(partial(self.settle, unit, filtered=True))

    @override
    def call(
        self,
        function: Handler,
        unit: Delivery,
        decoded: Any,
        transaction: HandlerTransaction | None,
    ) -> Any:
        job = self.job
        if not job.wants_message:
            return function(decoded)
        batch, index = unit.fetched.batch, unit.index
        attempt = unit.attempt if job.attempt_log is None else self.attempt_number(unit)
        if job.builds_messages:
            return function(decoded, batch, index, attempt, transaction)
        return function(decoded, make_message(decoded, batch, index, attempt, transaction))

    @override
    def commit(
        self, transaction: HandlerTransaction, unit: Delivery, decoded: Any
    ) -> BaseException | None:
        return self.commit_transaction(transaction, [unit])

    @override
    def record_result(
        self, unit: Delivery, decoded: Any, result: Any, failure: BaseException | None
    ) -> None:
        if failure is not None:
            self.record_failure(unit, failure)
        elif self.settles_at_once:
            self.dispatcher.mark_settled(unit)
        else:
            self.record_success(unit, result)

    @override
    def record_call_failure(self, unit: Delivery, error: BaseException) -> None:
        self.record_failure(unit, error)

    @override
    def abandon(self, unit: Delivery) -> None:
        self.dispatcher.abandon(unit)


class BatchCalls(Calls[list[Delivery]]):
    """The handler takes up to ``Job.batch`` messages at a time."""

    @override
    def take_unit(self, now: float) -> list[Delivery] | None:
        return self.dispatcher.take_batch(now, self.job.batch or 1) or None

    @override
    def admit(self, unit: list[Delivery]) -> list[Delivery] | None:
        """Split off the messages of closed keys: they are decided on one by one, in order."""
        if unit[0].reason is not None:
            self.dead_letter(unit[0])
            return None
        key_parking = self._key_parking
        if key_parking is None:
            return unit
        if len(unit) == 1:
            return None if self.park_if_closed(unit[0]) else unit
        closed = {state_and_key(each) for each in unit if key_parking.is_closed(each)}
        if not closed:
            return unit
        self.dispatcher.split_batch([each for each in unit if state_and_key(each) in closed])
        return [each for each in unit if state_and_key(each) not in closed] or None

    @override
    def decode(self, unit: list[Delivery]) -> DecodedBatch | NotCalled:
        decoded = DecodedBatch([], [], [], {}, set())
        accepts = self._accepts
        held_back: dict[StateAndKey, Exception] = {}
        """By key, the error that holds it back: all later messages of the key wait, too."""
        for index, delivery in enumerate(unit):
            if held_back and (error := held_back.get(state_and_key(delivery))) is not None:
                decoded.errors[index] = error
                continue
            try:
                again = _was_handled(delivery)
                value = self.decode_one(delivery.fetched, delivery.index, again=again)
            except Skip:
                decoded.skipped.append(index)
                continue
            except Exception as error:
                decoded.errors[index] = error
                if not self._is_for_newer_code(error):
                    decoded.undecodable.add(index)
                elif delivery.ordering_key is not None:
                    held_back[state_and_key(delivery)] = error
                continue
            try:
                accepted = accepts is None or accepts(value)
            except (Exception, CancelledError) as error:
                decoded.errors[index] = failure_of(error, self.job.name)
                continue
            if accepted:
                decoded.accepted.append(index)
                decoded.values.append(value)
            else:
                decoded.skipped.append(index)
        if not decoded.accepted:
            return NotCalled(partial(self.record_result, unit, decoded, None, None))
        return decoded

    @override
    def call(
        self,
        function: Handler,
        unit: list[Delivery],
        decoded: DecodedBatch,
        transaction: HandlerTransaction | None,
    ) -> Any:
        if not self.job.wants_message:
            return function(decoded.values)

        def make_messages() -> list[Message[Any]]:
            return [
                make_message(
                    value, each.fetched.batch, each.index, self.attempt_number(each), transaction
                )
                for value, each in zip(decoded.values, decoded.of_accepted(unit), strict=True)
            ]

        return function(
            decoded.values, make_messages if self.job.builds_messages else make_messages()
        )

    @override
    def commit(
        self, transaction: HandlerTransaction, unit: list[Delivery], decoded: DecodedBatch
    ) -> BaseException | None:
        return self.commit_transaction(transaction, decoded.of_accepted(unit))

    @override
    def record_result(
        self,
        unit: list[Delivery],
        decoded: DecodedBatch,
        result: Any,
        failure: BaseException | None,
    ) -> None:
        accepted, errors = decoded.accepted, dict(decoded.errors)
        if failure is not None and self._fail_on_config_error(
            unit, dict.fromkeys(range(len(unit)), failure)
        ):
            return
        if isinstance(failure, BatchError) and failure.results is not None:
            result = list(failure.results)
        elif failure is not None and len(accepted) == len(unit):
            self.record_call_failure(unit, failure)
            return
        elif isinstance(failure, BatchError) and self.job.encode_results is not None:
            self.dispatcher.split_batch(unit)
            return
        if isinstance(failure, BatchError):
            named = set(failure.errors)
            if not named or not named <= set(range(len(accepted))):
                self.dispatcher.split_batch(unit)
                return
            errors.update((accepted[index], error) for index, error in failure.errors.items())
        elif failure is not None:
            self.dispatcher.split_batch(unit)
            return
        self.dispatcher.counts.filtered += len(decoded.skipped)
        self.dispatcher.counts.handled -= len(decoded.skipped)
        outgoing: list[Outgoing] = []
        senders: list[int] = []
        if result is not None:
            outgoing, senders = self._encode_results(unit, decoded, result, errors)
        if not outgoing:
            self._settle_batch(unit, errors, decoded.undecodable)
            return

        def on_written(answers: WriteAnswers) -> None:
            errors.update(
                (index, answer)
                for index, answer in zip(senders, answers, strict=True)
                if isinstance(answer, BaseException)
            )
            self._settle_batch(unit, errors, decoded.undecodable)

        self._write(unit, outgoing, on_written, senders)

    def _encode_results(
        self,
        deliveries: list[Delivery],
        decoded: DecodedBatch,
        result: Any,
        errors: dict[int, BaseException],
    ) -> tuple[list[Outgoing], list[int]]:
        """The records of what the handler returned, and of which message each of them is; those
        that cannot be made are added to ``errors``."""
        outgoing: list[Outgoing] = []
        senders: list[int] = []
        encode = self.job.encode_results
        if encode is None:
            return outgoing, senders
        accepted = decoded.accepted
        try:
            items = list(result)
            if len(items) != len(accepted):
                raise ValueError(
                    f"{self.job.name} returned {len(items)} results for a batch of "
                    f"{len(accepted)} messages: return one for each, None for nothing"
                )
        except Exception as error:
            errors.update(dict.fromkeys(accepted, error))
            return outgoing, senders
        for index, item in zip(accepted, items, strict=True):
            if index in errors or item is None:
                continue
            delivery = deliveries[index]
            try:
                records = encode(item, delivery.fetched.batch, delivery.index, delivery.identity)
            except Exception as error:
                errors[index] = error
                continue
            outgoing.extend(records)
            senders.extend([index] * len(records))
        return outgoing, senders

    @override
    def record_call_failure(self, unit: Sequence[Delivery], error: BaseException) -> None:
        """The handler raised over all of these."""
        if isinstance(error, OwnershipLost):
            self.dispatcher.split_batch(unit)
            return
        if self._fail_on_config_error(unit, dict.fromkeys(range(len(unit)), error)):
            return
        if isinstance(error, BatchError):
            if self.job.encode_results is not None and len(unit) > 1:
                # The results of the other messages are unknown.
                self.dispatcher.split_batch(unit)
                return
            wrong = [index for index in error.errors if index not in range(len(unit))]
            if error.errors and not wrong:
                self._settle_batch(unit, error.errors, ())
                return
            logger.error(
                "%s: BatchError names %s of a batch of %d: treated as a failure of all",
                self.job.name, f"message {wrong[0]!r}" if wrong else "no message", len(unit),
            )  # fmt: skip
        if len(unit) == 1:
            self.record_failure(unit[0], error)
            return
        logger.info(
            "%s: a batch of %d failed, handling its messages one by one: %r",
            self.job.name, len(unit), error,
        )  # fmt: skip
        self.dispatcher.split_batch(unit)

    @override
    def abandon(self, unit: Sequence[Delivery]) -> None:
        for delivery in reversed(unit):
            self.dispatcher.abandon(delivery)


def failure_of(error: BaseException, name: str) -> BaseException:
    """The failure of a user's function that nobody has cancelled: a ``CancelledError`` of it comes
    from something that it ran or awaited, as with ``asyncio.run``, and becomes a ``RuntimeError``.

    :param name: the processor's.
    """
    if not isinstance(error, CancelledError):
        return error
    failure = RuntimeError(f"{name} was cancelled from within")
    failure.__cause__ = error
    return failure


def _was_handled(delivery: Delivery) -> bool:
    """A handler may have had its value before, alone or in a batch."""
    return delivery.alone or delivery.attempt > 1


def location(delivery: Delivery) -> str:
    """Where a delivery's message stands, for a log line."""
    batch = delivery.fetched.batch
    return f"{batch.topic}/{batch.partition}/{batch.offset(delivery.index)}"
