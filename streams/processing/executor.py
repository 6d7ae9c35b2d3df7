"""What every executor does with an outcome: settle, publish what was returned, try again,
dead-letter.

An executor owns a dispatcher and is the only one to touch it, inside :meth:`Executor.call_soon`:
under its lock, or on its loop. Nothing waits for a write: what a handler returned and dead letters
are sent with a callback, and until it comes the message's key stays in flight and the message
unsettled.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from random import random
from typing import Any

from streams.engine.dispatcher import Delivery, Dispatcher, PartitionState
from streams.engine.progress import FetchedBatch
from streams.engine.retry import retry_delay
from streams.errors import BatchError, Fenced, LogError, Unavailable, find_config_error
from streams.message import Batch, Message, make_message
from streams.processing.handler_transaction import HandlerTransaction
from streams.processing.job import AttemptLog, Job, Outgoing, Skip, Undecodable, check_headers
from streams.processing.polling_hand_over import PollingHandOver
from streams.processing.timing import Timing
from streams.text import count_with_noun, get_logger

logger = get_logger("streams")


class OwnershipLost(Fenced):
    """A handler's transaction was rolled back because its partition is another member's now."""


class TransactionPostponed(Unavailable):
    """A handler's transaction was rolled back because the log could not be reached."""


TRANSACTION_PAUSE = 1.0
"""Seconds before such a message is handled again; it uses up no attempt."""

WRITE_PAUSE = 1.0
"""Seconds before a dead letter that was refused is written again (times 2 each time, to 60)."""


@dataclass(slots=True)
class BatchOutcome:
    """What became of a batch, by index into it."""

    accepted: list[int] = field(default_factory=list)
    """Given to the handler, in this order."""
    decoded: list[Any] = field(default_factory=list)
    """Their decoded values."""
    skipped: list[int] = field(default_factory=list)
    """Not for this handler, or filtered out."""
    errors: dict[int, BaseException] = field(default_factory=dict)
    """Not decodable, or their filter raised."""
    poisoned: set[int] = field(default_factory=set)
    """Those of ``errors`` that no attempt will change."""
    result: Any = None
    failure: BaseException | None = None
    """What the handler raised."""


class Executor(ABC):
    """Runs a job's handler over what the dispatcher gives out."""

    def __init__(
        self, job: Job, open_transaction: Callable[[], HandlerTransaction] | None = None
    ) -> None:
        self.job = job
        self.dispatcher = Dispatcher(job.retry)
        self._open_transaction = (
            open_transaction if job.transactions and job.wants_message else None
        )
        self._now = job.clock.monotonic
        self.fatal: BaseException | None = None
        """What ended this executor, other than being stopped."""
        self.unconfirmed = 0
        """Messages whose writes (results, dead letters) are not confirmed yet."""
        self._suspended = False
        """No further handler is started."""
        self.impatient = False
        """Nobody waits for handlers any more."""
        self.timing: Timing | None = None
        """Takes the time of handlers' calls, where somebody asked for it."""

    # -- what the poller calls, in its turns

    @abstractmethod
    def call_soon(self, action: Callable[[], None]) -> None:
        """Run ``action`` where the dispatcher may be touched: now, or soon (any thread)."""

    @abstractmethod
    def notify(self) -> None:
        """There may be something to do."""

    def accept_polling(self, hand_over: PollingHandOver, wake: Callable[[], None]) -> None:
        """The poller's turns may be taken in a thread of this executor's; ``wake`` ends one that
        blocks. An executor that cannot leaves them to the poller."""
        return

    @property
    @abstractmethod
    def running(self) -> int:
        """Handlers running at this moment."""

    def counters(self) -> tuple[int, int]:
        """How many messages were handled and how many filtered out, at this moment."""
        counts = self.dispatcher.counts
        return counts.handled, counts.filtered

    @abstractmethod
    def call_and_wait(self, action: Callable[[], None]) -> None:
        """Like :meth:`call_soon`, and return when it was run (not from the loop, nor inside it)."""

    @abstractmethod
    def wait_idle(self, states: Collection[PartitionState] | None, until: float) -> bool:
        """Wait until ``until`` (monotonic) for what runs of these partitions, None: of all, with
        its writes confirmed. False: something still runs."""

    def cancel(self, states: Collection[PartitionState] | None) -> bool:
        """Cancel what runs of these partitions, None: of all. False: something still runs."""
        return self.wait_idle(states, float("-inf"))

    @abstractmethod
    def start(self) -> None:
        """Begin to work."""

    @abstractmethod
    def suspend(self) -> None:
        """Start no further handler (any thread)."""

    @abstractmethod
    def resume(self) -> None:
        """Undo :meth:`suspend`."""

    def overdue(self) -> int:
        """How many handlers run longer than the processor's timeout and cannot be ended."""
        return 0

    @abstractmethod
    def close(self) -> None:
        """End for good."""

    async def wait_closed(self) -> None:
        """On the app's loop, after :meth:`close`: wait a moment for what lives there to end."""
        await asyncio.sleep(0)

    def fail(self, error: BaseException) -> None:
        """End the processor with this error (where the dispatcher may be touched). Nothing more is
        started; the poller sees it and commits what is settled."""
        self.fatal = self.fatal or error
        self._suspended = True
        self.dispatcher.refill()

    def stop_waiting(self) -> None:
        """Whoever waits in :meth:`wait_idle` waits no more (any thread)."""
        self.impatient = True
        self.call_soon(lambda: None)

    def assign(self, state: PartitionState) -> None:
        """Begin with a partition."""
        self.call_and_wait(lambda: self.dispatcher.assign(state))

    def revoke(self, states: Collection[PartitionState]) -> None:
        """Start nothing more of these partitions."""

        def revoke() -> None:
            for each in states:
                self.dispatcher.revoke(each)

        self.call_and_wait(revoke)

    # -- one message

    def nothing_recorded(self, fetched: FetchedBatch) -> bool:
        """Nothing is kept of any of these messages that would have to be asked for, before one of
        them fails."""
        attempt_log, key_parking = self.job.attempt_log, self.job.key_parking
        return (attempt_log is None or attempt_log.nothing_recorded(fetched.batch)) and (
            key_parking is None or key_parking.no_key_closed(fetched)
        )

    def decode(self, fetched: FetchedBatch, index: int) -> Any:
        """The value to be handled.

        :raises Skip: it is not for this handler.
        """
        attempt_log = self.job.attempt_log
        if attempt_log is not None and attempt_log.is_delayed(fetched.batch, index):
            raise Skip
        if fetched.decoded is not None:
            event = fetched.decoded[index]
            if isinstance(event, Undecodable):
                raise event.error
            return event
        if fetched.decode is not None:
            try:
                return fetched.decode(fetched.values[index])
            except Exception:  # noqa: S110 - the careful way says what is wrong
                pass
        batch = fetched.batch
        if batch.unreadable:
            check_headers(batch, index)
        return self.job.decodings[batch.topic].decode_one(batch, index)

    def build_message(
        self, event: Any, delivery: Delivery, transaction: HandlerTransaction | None
    ) -> Message[Any]:
        """The message around a decoded value."""
        return make_message(
            event,
            delivery.fetched.batch,
            delivery.index,
            self.attempt_number(delivery),
            transaction,
        )

    def message_arguments(
        self, delivery: Delivery, transaction: HandlerTransaction | None
    ) -> tuple[Batch, int, int, HandlerTransaction | None]:
        """What :meth:`build_message` makes a message of: see :attr:`Job.builds_messages`."""
        return delivery.fetched.batch, delivery.index, self.attempt_number(delivery), transaction

    def build_messages(
        self,
        events: Sequence[Any],
        deliveries: Sequence[Delivery],
        transaction: HandlerTransaction | None,
    ) -> Any:
        """What a batch handler that wants messages is given: a list of them, or what makes it."""

        def make() -> list[Message[Any]]:
            pairs = zip(events, deliveries, strict=True)
            return [self.build_message(event, delivery, transaction) for event, delivery in pairs]

        return make if self.job.builds_messages else make()

    def _attempt_log_of(self, delivery: Delivery) -> AttemptLog | None:
        """What counts this message's attempts in the log. Of one that has come back from behind a
        dead one they are not."""
        key_parking = self.job.key_parking
        return (
            None
            if key_parking is not None and key_parking.has_returned(delivery)
            else self.job.attempt_log
        )

    def attempt_number(self, delivery: Delivery) -> int:
        """Which attempt this is, from 1; those before a restart count where the log knows them."""
        attempt_log = self._attempt_log_of(delivery)
        return (
            delivery.attempt
            if attempt_log is None
            else delivery.attempt
            + attempt_log.failed_attempts(delivery.fetched.batch, delivery.index)
        )

    def decode_batch(self, deliveries: Sequence[Delivery]) -> BatchOutcome:
        """Decode and filter a batch."""
        outcome = BatchOutcome()
        accepts = self.job.filter
        for index, delivery in enumerate(deliveries):
            try:
                event = self.decode(delivery.fetched, delivery.index)
            except Skip:
                outcome.skipped.append(index)
                continue
            except Exception as error:
                outcome.errors[index] = error
                outcome.poisoned.add(index)
                continue
            try:
                wanted = accepts is None or accepts(event)
            except Exception as error:
                outcome.errors[index] = error
                continue
            if wanted:
                outcome.accepted.append(index)
                outcome.decoded.append(event)
            else:
                outcome.skipped.append(index)
        return outcome

    # -- outcomes, where the dispatcher may be touched

    def succeeded(
        self, delivery: Delivery, result: Any, transaction: HandlerTransaction | None = None
    ) -> None:
        """The handler returned."""
        if self.job.encode_results is not None and result is not None:
            try:
                outgoing = self.job.encode_results(result, delivery)
            except Exception as error:
                self.failed(delivery, error)
                return
            if outgoing:
                self._write(
                    [delivery], outgoing, lambda errors: self._results_written(delivery, errors)
                )
                return
        self.settle(delivery)

    def settle(self, delivery: Delivery, *, filtered: bool = False) -> None:
        """The message was handled, or passed over, and what its handler returned is written."""
        key_parking = self.job.key_parking
        if (
            key_parking is not None
            and key_parking.has_returned(delivery)
            and delivery.fetched.state.is_owned
        ):
            # Not its partition's progress but a record says that it was handled.
            record = key_parking.handled(delivery)
            self._write(
                [delivery],
                [record],
                lambda errors: self._outcome_recorded(delivery, errors[0], filtered),
            )
        elif filtered:
            self.dispatcher.mark_filtered(delivery)
        else:
            self.dispatcher.mark_settled(delivery)

    def _outcome_recorded(
        self, delivery: Delivery, error: BaseException | None, filtered: bool
    ) -> None:
        key_parking = self.job.key_parking
        if error is not None:
            logger.error(
                "%s: %s was handled, and not noted: %r", self.job.name, location(delivery), error
            )
            self.dispatcher.deliver_at(delivery, self._now() + WRITE_PAUSE)
        elif key_parking is None or not key_parking.write_confirmed(delivery):
            self.dispatcher.abandon(delivery)
        elif filtered:
            self.dispatcher.mark_filtered(delivery)
        else:
            self.dispatcher.mark_settled(delivery)

    # -- keys that are closed behind a dead message

    def park_if_closed(self, delivery: Delivery) -> bool:
        """Whether the message is not to be handled now, because its key is closed."""
        key_parking = self.job.key_parking
        if key_parking is None:
            return False
        try:
            parking = key_parking.decide(delivery)
        except Unavailable:  # it has said so
            self.dispatcher.deliver_at(delivery, self._now() + WRITE_PAUSE)
            return True
        if parking is None:
            return False
        if parking.record is not None:
            self._write(
                [delivery],
                [parking.record],
                lambda errors: self._parked_behind(delivery, errors[0]),
            )
        else:
            self.dispatcher.mark_settled(delivery)
            self.dispatcher.counts.handled -= 1
            self.dispatcher.counts.duplicates += parking.is_duplicate
        return True

    def _parked_behind(self, delivery: Delivery, error: BaseException | None) -> None:
        key_parking = self.job.key_parking
        if error is not None:
            if key_parking is not None:
                key_parking.write_refused(delivery)
            logger.error(
                "%s: cannot be parked behind a dead message of its key, again in %g s: %s: %r",
                self.job.name, WRITE_PAUSE, location(delivery), error,
            )  # fmt: skip
            self.dispatcher.deliver_at(delivery, self._now() + WRITE_PAUSE)
        elif key_parking is None or not key_parking.write_confirmed(delivery):
            self.dispatcher.abandon(delivery)
        else:
            self.dispatcher.mark_settled(delivery)
            self.dispatcher.counts.handled -= 1

    def without_parked(self, deliveries: list[Delivery]) -> list[Delivery]:
        """Those of what was taken that are to be handled now. Of a key that is closed, all are
        looked at one by one, in order."""
        key_parking = self.job.key_parking
        if key_parking is None or not deliveries:
            return deliveries
        if len(deliveries) == 1:
            return [] if self.park_if_closed(deliveries[0]) else deliveries
        closed = {
            (id(delivery.fetched.state), delivery.ordering_key)
            for delivery in deliveries
            if key_parking.is_closed(delivery)
        }
        if not closed:
            return deliveries
        self.dispatcher.split_batch(
            [
                delivery
                for delivery in deliveries
                if (id(delivery.fetched.state), delivery.ordering_key) in closed
            ]
        )
        return [
            delivery
            for delivery in deliveries
            if (id(delivery.fetched.state), delivery.ordering_key) not in closed
        ]

    def failed(self, delivery: Delivery, error: BaseException) -> None:
        """The handler raised, or what it returned cannot be written."""
        if isinstance(error, OwnershipLost):
            # Whoever owns it handles it: that is no failure, whatever the attempt.
            self.dispatcher.abandon(delivery)
            return
        if isinstance(error, TransactionPostponed):
            logger.warning("%s: rolled back %s: %s", self.job.name, location(delivery), error)
            self.dispatcher.deliver_at(delivery, self._now() + TRANSACTION_PAUSE)
            return
        if self._fail_on_config_error([delivery], {0: error}):
            return
        if self._attempt_log_of(delivery) is not None:
            self._settle_batch([delivery], {0: error}, ())
            return
        rejected = self.dispatcher.mark_failed(delivery, error, self._now(), random())
        if rejected is None:
            logger.info(
                "%s: attempt %d of %d failed for %s: %r",
                self.job.name, delivery.attempt, self.job.retry.attempts, location(delivery), error,
            )  # fmt: skip
        else:
            self.dead_letter(rejected)

    def _fail_on_config_error(
        self, deliveries: Sequence[Delivery], errors: Mapping[int, BaseException]
    ) -> bool:
        """End the processor if one of these failures (by index) is a :class:`ConfigError`: it is
        the program that is wrong, not the message. Messages that failed stay unsettled."""
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
        self.fail(found)
        self.dispatcher.mark_batch_settled(
            [delivery for at, delivery in enumerate(deliveries) if at not in errors]
        )
        for at in sorted(errors, reverse=True):
            self.dispatcher.abandon(deliveries[at])
        return True

    def batch_failed(self, deliveries: Sequence[Delivery], error: BaseException) -> None:
        """The batch handler raised over all of these."""
        if isinstance(error, OwnershipLost):
            self.dispatcher.split_batch(deliveries)
            return
        if self._fail_on_config_error(deliveries, dict.fromkeys(range(len(deliveries)), error)):
            return
        if (
            isinstance(error, BatchError)
            and self.job.encode_results is not None
            and len(deliveries) > 1
        ):
            self.dispatcher.split_batch(
                deliveries
            )  # what the others would have returned is not known
            return
        if isinstance(error, BatchError):
            wrong = [index for index in error.errors if index not in range(len(deliveries))]
            if error.errors and not wrong:
                self._settle_batch(deliveries, error.errors, ())
                return
            logger.error(
                "%s: BatchError names %s of a batch of %d: taken as a failure of all",
                self.job.name, f"message {wrong[0]!r}" if wrong else "no message", len(deliveries),
            )  # fmt: skip
        if len(deliveries) == 1:
            self.failed(deliveries[0], error)
            return
        logger.info(
            "%s: a batch of %d failed, one by one: %r", self.job.name, len(deliveries), error
        )
        self.dispatcher.split_batch(deliveries)

    def batch_ended(self, deliveries: Sequence[Delivery], outcome: BatchOutcome) -> None:
        """The batch handler returned or raised, over those messages that were for it."""
        failure = outcome.failure
        if failure is not None and self._fail_on_config_error(
            deliveries, dict.fromkeys(range(len(deliveries)), failure)
        ):
            return
        if isinstance(failure, BatchError) and failure.results is not None:
            outcome.result = list(failure.results)
        elif failure is not None and len(outcome.accepted) == len(deliveries):
            self.batch_failed(deliveries, failure)
            return
        elif isinstance(failure, BatchError) and self.job.encode_results is not None:
            self.dispatcher.split_batch(deliveries)
            return
        if outcome.failure is not None and not isinstance(outcome.failure, BatchError):
            self.dispatcher.split_batch(deliveries)
            return
        errors = dict(outcome.errors)
        if isinstance(outcome.failure, BatchError):
            named = set(outcome.failure.errors)
            if not named or not named <= set(range(len(outcome.accepted))):
                self.dispatcher.split_batch(deliveries)
                return
            errors.update(
                (outcome.accepted[index], error) for index, error in outcome.failure.errors.items()
            )
        self.dispatcher.counts.filtered += len(outcome.skipped)
        self.dispatcher.counts.handled -= len(outcome.skipped)
        outgoing: list[Outgoing] = []
        senders: list[int] = []
        if self.job.encode_results is not None and outcome.result is not None:
            try:
                items = list(outcome.result)
                if len(items) != len(outcome.accepted):
                    raise ValueError(
                        f"{self.job.name} returned {len(items)} results for a batch of "
                        f"{len(outcome.accepted)} messages: return one for each, None for nothing"
                    )
            except Exception as error:
                errors.update(dict.fromkeys(outcome.accepted, error))
                items = []
            for index, item in zip(outcome.accepted, items, strict=False):
                if index in errors:
                    continue
                try:
                    records = (
                        () if item is None else self.job.encode_results(item, deliveries[index])
                    )
                except Exception as error:
                    errors[index] = error
                    continue
                outgoing.extend(records)
                senders.extend([index] * len(records))
        if not outgoing:
            self._settle_batch(deliveries, errors, outcome.poisoned)
            return

        def on_written(answers: Sequence[BaseException | None]) -> None:
            pairs = zip(senders, answers, strict=True)
            errors.update((index, answer) for index, answer in pairs if answer is not None)
            self._settle_batch(deliveries, errors, outcome.poisoned)

        self._write(deliveries, outgoing, on_written)

    def _settle_batch(
        self,
        deliveries: Sequence[Delivery],
        errors: Mapping[int, BaseException],
        final: Collection[int],
    ) -> None:
        key_parking = self.job.key_parking
        if not errors:
            if key_parking is not None and key_parking.has_returned(
                deliveries[0]
            ):  # it comes alone
                self.settle(deliveries[0])
            else:
                self.dispatcher.mark_batch_settled(deliveries)
            return
        if self._fail_on_config_error(deliveries, errors):
            return
        attempt_log = self._attempt_log_of(deliveries[0])
        if attempt_log is not None:
            self._record_attempts(attempt_log, deliveries, errors, final)
            return
        self._settle_failed(deliveries, errors, final)

    def _settle_failed(
        self,
        deliveries: Sequence[Delivery],
        errors: Mapping[int, BaseException],
        final: Collection[int],
    ) -> None:
        now = self._now()
        for rejected in self.dispatcher.mark_batch_failed(deliveries, errors, now, random(), final):
            self.dead_letter(rejected)

    def _record_attempts(
        self,
        attempt_log: AttemptLog,
        deliveries: Sequence[Delivery],
        errors: Mapping[int, BaseException],
        final: Collection[int],
    ) -> None:
        """Failures whose attempts are counted in the log: once that is written, those messages
        that wait elsewhere are settled, and the others wait in their key queue or are
        dead-lettered."""
        deliveries, failures, exhausted = list(deliveries), dict(errors), set(final)
        copy_of: list[int] = []
        outgoing: list[Outgoing] = []
        for index, error in errors.items():
            delivery = deliveries[index]
            attempt = self.attempt_number(delivery)
            deliveries[index] = delivery = delivery._replace(attempt=attempt)
            delay = (
                None if index in final else retry_delay(self.job.retry, attempt, error, random())
            )
            if delay is None:
                exhausted.add(index)
                continue
            logger.info(
                "%s: attempt %d of %d failed for %s: %r",
                self.job.name, attempt, self.job.retry.attempts, location(delivery), error,
            )  # fmt: skip
            delayed_copy, attempt_record = attempt_log.record_failure(delivery, attempt, delay)
            if delayed_copy is not None:
                outgoing.append(delayed_copy)
                copy_of.append(index)
            outgoing.append(attempt_record)
            copy_of.append(-1)

        def on_attempts_written(answers: Sequence[BaseException | None]) -> None:
            counts = self.dispatcher.counts
            for index, answer in zip(copy_of, answers, strict=True):
                if index < 0:
                    if answer is not None:
                        logger.error("%s: an attempt was not noted: %r", self.job.name, answer)
                elif answer is None:
                    del failures[index]
                    counts.retries += 1
                    counts.handled -= 1  # it is settled here, and was not handled
                else:
                    failures[index] = answer
                    exhausted.add(index)
            if failures:
                self._settle_failed(deliveries, failures, exhausted)
            else:
                self.dispatcher.mark_batch_settled(deliveries)

        if outgoing:
            self._write(deliveries, outgoing, on_attempts_written)
        else:
            self._settle_failed(deliveries, failures, exhausted)

    def reject_undecodable(self, delivery: Delivery, error: BaseException) -> None:
        """The message cannot be decoded: no attempt will change that."""
        if self._fail_on_config_error([delivery], {0: error}):
            return
        rejected = self.dispatcher.rejected(delivery, error)
        self.dead_letter(rejected)

    def skipped(self, delivery: Delivery) -> None:
        """The message is not for this handler."""
        self.settle(delivery, filtered=True)

    def dead_letter(self, delivery: Delivery) -> None:
        """Write the dead letter of a delivery that has a reason; the source is settled after
        that."""
        reason = delivery.reason
        if reason is None or self.job.dead_letter is None:
            raise RuntimeError("nothing to bury, or nowhere to")
        logger.warning(
            "%s: dead letter after %s: %s: %r",
            self.job.name, count_with_noun(reason.attempts, "attempt"), location(delivery),
            reason.error,
        )  # fmt: skip
        if self.job.key_parking is not None and not delivery.fetched.state.is_owned:
            self.dispatcher.abandon(delivery)  # whoever owns it now decides what becomes of its key
            return
        try:
            dead_letter = self.job.dead_letter(delivery)
            if self.job.key_parking is not None:
                dead_letter = self.job.key_parking.close_key(delivery, dead_letter)
        except Exception as error:
            self._dead_letter_refused(delivery, error)
            return
        self._write(
            [delivery], [dead_letter], lambda errors: self._dead_letter_written(delivery, errors[0])
        )

    def _dead_letter_written(self, delivery: Delivery, error: BaseException | None) -> None:
        key_parking = self.job.key_parking
        if error is not None:
            if key_parking is not None:
                key_parking.write_refused(delivery)
            self._dead_letter_refused(delivery, error)
        elif key_parking is not None and not key_parking.write_confirmed(delivery):
            self.dispatcher.abandon(
                delivery
            )  # it is not settled: what was written counts for nobody
        else:
            self.dispatcher.mark_settled(delivery)

    def _dead_letter_refused(self, delivery: Delivery, error: BaseException) -> None:
        reason = delivery.reason
        failed_writes = reason.failed_writes + 1 if reason is not None else 1
        pause = min(60.0, WRITE_PAUSE * 2.0 ** min(failed_writes - 1, 10))
        logger.error(
            "%s: cannot write the dead letter of %s, again in %g s: %r",
            self.job.name, location(delivery), pause, error,
        )  # fmt: skip
        if reason is not None:
            delivery = delivery._replace(reason=reason._replace(failed_writes=failed_writes))
        self.dispatcher.deliver_at(delivery, self._now() + pause)

    def _write(
        self,
        deliveries: Sequence[Delivery],
        outgoing: Sequence[Outgoing],
        on_written: Callable[[Sequence[BaseException | None]], None],
    ) -> None:
        """Write, and call ``on_written`` where the dispatcher may be touched once the log
        answered."""
        write_derived = self.job.write_derived
        if write_derived is None:
            raise RuntimeError("this job has nothing to write with")
        self.unconfirmed += len(deliveries)
        for delivery in deliveries:
            delivery.fetched.state.unconfirmed += 1

        def on_answer(errors: Sequence[BaseException | None]) -> None:
            self.unconfirmed -= len(deliveries)
            for delivery in deliveries:
                delivery.fetched.state.unconfirmed -= 1
            on_written(errors)

        write_derived(outgoing, lambda errors: self.call_soon(lambda: on_answer(errors)))

    def _results_written(self, delivery: Delivery, errors: Sequence[BaseException | None]) -> None:
        """What this message's handler returned was written, or refused."""
        error = next((error for error in errors if error is not None), None)
        if error is None:
            self.settle(delivery)
        else:
            self.failed(delivery, error)

    def commit_transaction(
        self, transaction: HandlerTransaction, deliveries: Sequence[Delivery]
    ) -> BaseException | None:
        """Commit the handler's transaction with its messages' places; what went wrong, if so."""
        try:
            transaction.commit(deliveries)
        except Fenced as error:
            logger.warning("%s: rolled back, the partition moved on: %r", self.job.name, error)
            for (
                delivery
            ) in deliveries:  # start nothing more of it until the log has said what holds
                delivery.fetched.state.assignment.valid_until = float("-inf")
            return OwnershipLost(str(error))
        except Unavailable as error:
            return TransactionPostponed(str(error))
        except LogError as error:
            return error
        return None


def location(delivery: Delivery) -> str:
    """Where a delivery's message stands, for a log line."""
    batch = delivery.fetched.batch
    return f"{batch.topic}/{batch.partition}/{batch.offset(delivery.index)}"
