"""What every runner does with an outcome: settle, publish what was returned, try again, bury.

A runner owns a dispatcher and is the only one to touch it, inside :meth:`Runner.enter`: under its
lock, or on its loop. Nothing waits for a write: what a handler returned and dead letters are sent
with a callback, and until it comes the message's lane stays busy and the message unsettled.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from random import random
from typing import Any

from streams.engine.dispatch import Dispatcher, Owned, Work
from streams.engine.progress import Segment
from streams.engine.retry import again
from streams.errors import BatchError, Fenced, LogError, Unavailable, config_error
from streams.message import Batch, Message, deliver
from streams.runners.job import Job, Late, Outgoing, Skip, Undecodable, check_headers
from streams.runners.joint import Joint
from streams.runners.lead import Lead
from streams.runners.timing import Timing
from streams.text import counted, get_logger

logger = get_logger("streams")


class MovedOn(Fenced):
    """A handler's transaction was rolled back because its partition is another member's now."""


class Postponed(Unavailable):
    """A handler's transaction was rolled back because the log could not be reached."""


POSTPONED = 1.0
"""Seconds before such a message is handled again; it uses up no attempt."""

BURIAL_PAUSE = 1.0
"""Seconds before a dead letter that was refused is written again (times 2 each time, to 60)."""


@dataclass(slots=True)
class BatchOutcome:
    """What became of a batch, by index into it."""

    chosen: list[int] = field(default_factory=list)
    """Given to the handler, in this order."""
    events: list[Any] = field(default_factory=list)
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


class Runner(ABC):
    """Runs a job's handler over what the dispatcher gives out."""

    def __init__(self, job: Job, joint: Callable[[], Joint] | None = None) -> None:
        self.job = job
        self.dispatcher = Dispatcher(job.retry)
        self._joint = joint if job.transactions and job.wants_message else None
        self._now = job.clock.monotonic
        self.fatal: BaseException | None = None
        """What ended this runner, other than being stopped."""
        self.sending = 0
        """Messages whose writes (results, dead letters) are not confirmed yet."""
        self._halted = False
        """No further handler is started."""
        self.hurried = False
        """Nobody waits for handlers any more."""
        self.timing: Timing | None = None
        """Takes the time of handlers' calls, where somebody asked for it."""

    # -- what the pump calls, in its turns

    @abstractmethod
    def enter(self, action: Callable[[], None]) -> None:
        """Run ``action`` where the dispatcher may be touched: now, or soon (any thread)."""

    @abstractmethod
    def kick(self) -> None:
        """There may be something to do."""

    def follow(self, lead: Lead, wake: Callable[[], None]) -> None:
        """The pump's turns may be taken in a thread of this runner's; ``wake`` ends one that
        blocks. A runner that cannot leaves them to the pump."""
        return

    @property
    @abstractmethod
    def running(self) -> int:
        """Handlers running at this moment."""

    def tally(self) -> tuple[int, int]:
        """How many messages were handled and how many filtered out, at this moment."""
        counts = self.dispatcher.counts
        return counts.handled, counts.filtered

    @abstractmethod
    def call(self, action: Callable[[], None]) -> None:
        """Like :meth:`enter`, and return when it was run (not from the loop, nor inside it)."""

    @abstractmethod
    def calm(self, owned: Collection[Owned] | None, until: float) -> bool:
        """Wait until ``until`` (monotonic) for what runs of these partitions, None: of all, with
        its writes confirmed. False: something still runs."""

    def cancel(self, owned: Collection[Owned] | None) -> bool:
        """Cancel what runs of these partitions, None: of all. False: something still runs."""
        return self.calm(owned, float("-inf"))

    @abstractmethod
    def start(self) -> None:
        """Begin to work."""

    @abstractmethod
    def halt(self) -> None:
        """Start no further handler (any thread)."""

    @abstractmethod
    def resume(self) -> None:
        """Undo :meth:`halt`."""

    def overdue(self) -> int:
        """How many handlers run longer than the processor's timeout and cannot be ended."""
        return 0

    @abstractmethod
    def close(self) -> None:
        """End for good."""

    async def gone(self) -> None:
        """On the app's loop, after :meth:`close`: wait a moment for what lives there to end."""
        await asyncio.sleep(0)

    def die(self, error: BaseException) -> None:
        """End the processor with this error (where the dispatcher may be touched). Nothing more is
        started; the pump sees it and commits what is settled."""
        self.fatal = self.fatal or error
        self._halted = True
        self.dispatcher.refill()

    def hurry(self) -> None:
        """Whoever waits in :meth:`calm` waits no more (any thread)."""
        self.hurried = True
        self.enter(lambda: None)

    def assign(self, owned: Owned) -> None:
        """Begin with a partition."""
        self.call(lambda: self.dispatcher.assign(owned))

    def revoke(self, owned: Collection[Owned]) -> None:
        """Start nothing more of these partitions."""

        def revoke() -> None:
            for each in owned:
                self.dispatcher.revoke(each)

        self.call(revoke)

    # -- one message

    def clear(self, segment: Segment) -> bool:
        """Nothing is kept of any of these messages that would have to be asked for, before one of
        them fails."""
        late, sequence = self.job.late, self.job.sequence
        return (late is None or late.clear(segment.batch)) and (
            sequence is None or sequence.clear(segment)
        )

    def decode(self, segment: Segment, index: int) -> Any:
        """The value to be handled.

        :raises Skip: it is not for this handler.
        """
        late = self.job.late
        if late is not None and late.moved(segment.batch, index):
            raise Skip
        if segment.events is not None:
            event = segment.events[index]
            if isinstance(event, Undecodable):
                raise event.error
            return event
        if segment.decode is not None:
            try:
                return segment.decode(segment.values[index])
            except Exception:  # noqa: S110 - the careful way says what is wrong
                pass
        batch = segment.batch
        if batch.unreadable:
            check_headers(batch, index)
        return self.job.decodings[batch.topic].one(batch, index)

    def message(self, event: Any, work: Work, joint: Joint | None) -> Message[Any]:
        """The message around a decoded value."""
        return deliver(event, work[0].batch, work[1], self.attempt(work), joint)

    def row(self, work: Work, joint: Joint | None) -> tuple[Batch, int, int, Joint | None]:
        """What :meth:`message` makes a message of: see :attr:`Job.builds_messages`."""
        return work[0].batch, work[1], self.attempt(work), joint

    def messages(self, events: Sequence[Any], works: Sequence[Work], joint: Joint | None) -> Any:
        """What a batch handler that wants messages is given: a list of them, or what makes it."""

        def make() -> list[Message[Any]]:
            pairs = zip(events, works, strict=True)
            return [self.message(event, work, joint) for event, work in pairs]

        return make if self.job.builds_messages else make()

    def _late(self, work: Work) -> Late | None:
        """What counts this message's attempts in the log. Of one that has come back from behind a
        dead one they are not."""
        sequence = self.job.sequence
        return None if sequence is not None and sequence.back(work) else self.job.late

    def attempt(self, work: Work) -> int:
        """Which attempt this is, from 1; those before a restart count where the log knows them."""
        late = self._late(work)
        return work[4] if late is None else work[4] + late.attempts(work[0].batch, work[1])

    def choose(self, works: Sequence[Work]) -> BatchOutcome:
        """Decode and filter a batch."""
        outcome = BatchOutcome()
        keep = self.job.filter
        for index, work in enumerate(works):
            try:
                event = self.decode(work[0], work[1])
            except Skip:
                outcome.skipped.append(index)
                continue
            except Exception as error:
                outcome.errors[index] = error
                outcome.poisoned.add(index)
                continue
            try:
                wanted = keep is None or keep(event)
            except Exception as error:
                outcome.errors[index] = error
                continue
            if wanted:
                outcome.chosen.append(index)
                outcome.events.append(event)
            else:
                outcome.skipped.append(index)
        return outcome

    # -- outcomes, where the dispatcher may be touched

    def succeeded(self, work: Work, result: Any, joint: Joint | None = None) -> None:
        """The handler returned."""
        if self.job.results is not None and result is not None:
            try:
                outgoing = self.job.results(result, work)
            except Exception as error:
                self.failed(work, error)
                return
            if outgoing:
                self._send([work], outgoing, lambda errors: self._sent(work, errors))
                return
        self.settle(work)

    def settle(self, work: Work, *, filtered: bool = False) -> None:
        """The message was handled, or passed over, and what its handler returned is written."""
        sequence = self.job.sequence
        if sequence is not None and sequence.back(work) and work[0].owner.live:
            # Not its partition's progress but a record says that it was handled.
            record = sequence.done(work)
            self._send([work], [record], lambda errors: self._noted(work, errors[0], filtered))
        elif filtered:
            self.dispatcher.filtered(work)
        else:
            self.dispatcher.done(work)

    def _noted(self, work: Work, error: BaseException | None, filtered: bool) -> None:
        sequence = self.job.sequence
        if error is not None:
            logger.error("%s: %s was handled, and not noted: %r", self.job.name, where(work), error)
            self.dispatcher.later(work, self._now() + BURIAL_PAUSE)
        elif sequence is None or not sequence.written(work):
            self.dispatcher.abandon(work)
        elif filtered:
            self.dispatcher.filtered(work)
        else:
            self.dispatcher.done(work)

    # -- keys that are closed behind a dead message

    def park(self, work: Work) -> bool:
        """Whether the message is not to be handled now, because its key is closed."""
        sequence = self.job.sequence
        if sequence is None:
            return False
        try:
            parking = sequence.parking(work)
        except Unavailable:  # it has said so
            self.dispatcher.later(work, self._now() + BURIAL_PAUSE)
            return True
        if parking is None:
            return False
        if parking.record is not None:
            self._send([work], [parking.record], lambda errors: self._put_behind(work, errors[0]))
        else:
            self.dispatcher.done(work)
            self.dispatcher.counts.handled -= 1
            self.dispatcher.counts.duplicates += parking.settled
        return True

    def _put_behind(self, work: Work, error: BaseException | None) -> None:
        sequence = self.job.sequence
        if error is not None:
            if sequence is not None:
                sequence.refused(work)
            logger.error(
                "%s: cannot be parked behind a dead message of its key, again in %g s: %s: %r",
                self.job.name, BURIAL_PAUSE, where(work), error,
            )  # fmt: skip
            self.dispatcher.later(work, self._now() + BURIAL_PAUSE)
        elif sequence is None or not sequence.written(work):
            self.dispatcher.abandon(work)
        else:
            self.dispatcher.done(work)
            self.dispatcher.counts.handled -= 1

    def unparked(self, works: list[Work]) -> list[Work]:
        """Those of what was taken that are to be handled now. Of a key that is closed, all are
        looked at one by one, in order."""
        sequence = self.job.sequence
        if sequence is None or not works:
            return works
        if len(works) == 1:
            return [] if self.park(works[0]) else works
        closed = {(id(work[0].owner), work[2]) for work in works if sequence.closed(work)}
        if not closed:
            return works
        self.dispatcher.split([w for w in works if (id(w[0].owner), w[2]) in closed])
        return [work for work in works if (id(work[0].owner), work[2]) not in closed]

    def failed(self, work: Work, error: BaseException) -> None:
        """The handler raised, or what it returned cannot be written."""
        if isinstance(error, MovedOn):
            # Whoever owns it handles it: that is no failure, whatever the attempt.
            self.dispatcher.abandon(work)
            return
        if isinstance(error, Postponed):
            logger.warning("%s: rolled back %s: %s", self.job.name, where(work), error)
            self.dispatcher.later(work, self._now() + POSTPONED)
            return
        if self._stopped([work], {0: error}):
            return
        if self._late(work) is not None:
            self._settle_batch([work], {0: error}, ())
            return
        burial = self.dispatcher.failed(work, error, self._now(), random())
        if burial is None:
            logger.info(
                "%s: attempt %d of %d failed for %s: %r",
                self.job.name, work[4], self.job.retry.attempts, where(work), error,
            )  # fmt: skip
        else:
            self.bury(burial)

    def _stopped(self, works: Sequence[Work], errors: Mapping[int, BaseException]) -> bool:
        """End the processor if one of these failures (by index) is a :class:`ConfigError`: it is
        the program that is wrong, not the message. Messages that failed stay unsettled."""
        wrong = ((at, found) for at, each in errors.items() if (found := config_error(each)))
        index, found = next(wrong, (-1, None))
        if found is None:
            return False
        logger.error(
            "%s: stopped, as no message can be handled like this; %s stays unsettled: %s",
            self.job.name, where(works[index]), found, exc_info=found,
        )  # fmt: skip
        self.die(found)
        self.dispatcher.done_batch([work for at, work in enumerate(works) if at not in errors])
        for at in sorted(errors, reverse=True):
            self.dispatcher.abandon(works[at])
        return True

    def batch_failed(self, works: Sequence[Work], error: BaseException) -> None:
        """The batch handler raised over all of these."""
        if isinstance(error, MovedOn):
            self.dispatcher.split(works)
            return
        if self._stopped(works, dict.fromkeys(range(len(works)), error)):
            return
        if isinstance(error, BatchError) and self.job.results is not None and len(works) > 1:
            self.dispatcher.split(works)  # what the others would have returned is not known
            return
        if isinstance(error, BatchError):
            wrong = [index for index in error.errors if index not in range(len(works))]
            if error.errors and not wrong:
                self._settle_batch(works, error.errors, ())
                return
            logger.error(
                "%s: BatchError names %s of a batch of %d: taken as a failure of all",
                self.job.name, f"message {wrong[0]!r}" if wrong else "no message", len(works),
            )  # fmt: skip
        if len(works) == 1:
            self.failed(works[0], error)
            return
        logger.info("%s: a batch of %d failed, one by one: %r", self.job.name, len(works), error)
        self.dispatcher.split(works)

    def batch_ended(self, works: Sequence[Work], outcome: BatchOutcome) -> None:
        """The batch handler returned or raised, over those messages that were for it."""
        failure = outcome.failure
        if failure is not None and self._stopped(works, dict.fromkeys(range(len(works)), failure)):
            return
        if isinstance(failure, BatchError) and failure.results is not None:
            outcome.result = list(failure.results)
        elif failure is not None and len(outcome.chosen) == len(works):
            self.batch_failed(works, failure)
            return
        elif isinstance(failure, BatchError) and self.job.results is not None:
            self.dispatcher.split(works)
            return
        if outcome.failure is not None and not isinstance(outcome.failure, BatchError):
            self.dispatcher.split(works)
            return
        errors = dict(outcome.errors)
        if isinstance(outcome.failure, BatchError):
            named = set(outcome.failure.errors)
            if not named or not named <= set(range(len(outcome.chosen))):
                self.dispatcher.split(works)
                return
            errors.update(
                (outcome.chosen[index], error) for index, error in outcome.failure.errors.items()
            )
        self.dispatcher.counts.filtered += len(outcome.skipped)
        self.dispatcher.counts.handled -= len(outcome.skipped)
        outgoing: list[Outgoing] = []
        senders: list[int] = []
        if self.job.results is not None and outcome.result is not None:
            try:
                items = list(outcome.result)
                if len(items) != len(outcome.chosen):
                    raise ValueError(
                        f"{self.job.name} returned {len(items)} results for a batch of "
                        f"{len(outcome.chosen)} messages: return one for each, None for nothing"
                    )
            except Exception as error:
                errors.update(dict.fromkeys(outcome.chosen, error))
                items = []
            for index, item in zip(outcome.chosen, items, strict=False):
                if index in errors:
                    continue
                try:
                    records = () if item is None else self.job.results(item, works[index])
                except Exception as error:
                    errors[index] = error
                    continue
                outgoing.extend(records)
                senders.extend([index] * len(records))
        if not outgoing:
            self._settle_batch(works, errors, outcome.poisoned)
            return

        def sent(answers: Sequence[BaseException | None]) -> None:
            pairs = zip(senders, answers, strict=True)
            errors.update((index, answer) for index, answer in pairs if answer is not None)
            self._settle_batch(works, errors, outcome.poisoned)

        self._send(works, outgoing, sent)

    def _settle_batch(
        self, works: Sequence[Work], errors: Mapping[int, BaseException], final: Collection[int]
    ) -> None:
        sequence = self.job.sequence
        if not errors:
            if sequence is not None and sequence.back(works[0]):  # it comes alone
                self.settle(works[0])
            else:
                self.dispatcher.done_batch(works)
            return
        if self._stopped(works, errors):
            return
        late = self._late(works[0])
        if late is not None:
            self._log_attempts(late, works, errors, final)
            return
        self._settle_failed(works, errors, final)

    def _settle_failed(
        self, works: Sequence[Work], errors: Mapping[int, BaseException], final: Collection[int]
    ) -> None:
        now = self._now()
        for burial in self.dispatcher.batch_failed(works, errors, now, random(), final):
            self.bury(burial)

    def _log_attempts(
        self,
        late: Late,
        works: Sequence[Work],
        errors: Mapping[int, BaseException],
        final: Collection[int],
    ) -> None:
        """Failures whose attempts are counted in the log: once that is written, those messages
        that wait elsewhere are settled, and the others wait in their lanes or are buried."""
        works, left, hopeless = list(works), dict(errors), set(final)
        aside: list[int] = []
        outgoing: list[Outgoing] = []
        for index, error in errors.items():
            work = works[index]
            attempt = self.attempt(work)
            works[index] = work = (*work[:4], attempt, *work[5:])
            delay = None if index in final else again(self.job.retry, attempt, error, random())
            if delay is None:
                hopeless.add(index)
                continue
            logger.info(
                "%s: attempt %d of %d failed for %s: %r",
                self.job.name, attempt, self.job.retry.attempts, where(work), error,
            )  # fmt: skip
            copy, note = late.failing(work, attempt, delay)
            if copy is not None:
                outgoing.append(copy)
                aside.append(index)
            outgoing.append(note)
            aside.append(-1)

        def written(answers: Sequence[BaseException | None]) -> None:
            counts = self.dispatcher.counts
            for index, answer in zip(aside, answers, strict=True):
                if index < 0:
                    if answer is not None:
                        logger.error("%s: an attempt was not noted: %r", self.job.name, answer)
                elif answer is None:
                    del left[index]
                    counts.retries += 1
                    counts.handled -= 1  # it is settled here, and was not handled
                else:
                    left[index] = answer
                    hopeless.add(index)
            if left:
                self._settle_failed(works, left, hopeless)
            else:
                self.dispatcher.done_batch(works)

        if outgoing:
            self._send(works, outgoing, written)
        else:
            self._settle_failed(works, left, hopeless)

    def poison(self, work: Work, error: BaseException) -> None:
        """The message cannot be decoded: no attempt will change that."""
        if self._stopped([work], {0: error}):
            return
        burial = self.dispatcher.condemned(work, error)
        self.bury(burial)

    def skipped(self, work: Work) -> None:
        """The message is not for this handler."""
        self.settle(work, filtered=True)

    def bury(self, work: Work) -> None:
        """Write the dead letter of a work that has a burial; the source is settled after that."""
        burial = work[6]
        if burial is None or self.job.letter is None:
            raise RuntimeError("nothing to bury, or nowhere to")
        logger.warning(
            "%s: dead letter after %s: %s: %r",
            self.job.name, counted(burial.attempts, "attempt"), where(work), burial.error,
        )  # fmt: skip
        if self.job.sequence is not None and not work[0].owner.live:
            self.dispatcher.abandon(work)  # whoever owns it now decides what becomes of its key
            return
        try:
            letter = self.job.letter(work)
            if self.job.sequence is not None:
                letter = self.job.sequence.buried(work, letter)
        except Exception as error:
            self._unburied(work, error)
            return
        self._send([work], [letter], lambda errors: self._buried(work, errors[0]))

    def _buried(self, work: Work, error: BaseException | None) -> None:
        sequence = self.job.sequence
        if error is not None:
            if sequence is not None:
                sequence.refused(work)
            self._unburied(work, error)
        elif sequence is not None and not sequence.written(work):
            self.dispatcher.abandon(work)  # it is not settled: what was written counts for nobody
        else:
            self.dispatcher.done(work)

    def _unburied(self, work: Work, error: BaseException) -> None:
        burial = work[6]
        tries = burial.tries + 1 if burial is not None else 1
        pause = min(60.0, BURIAL_PAUSE * 2.0 ** min(tries - 1, 10))
        logger.error(
            "%s: cannot write the dead letter of %s, again in %g s: %r",
            self.job.name, where(work), pause, error,
        )  # fmt: skip
        if burial is not None:
            work = (*work[:6], burial._replace(tries=tries))
        self.dispatcher.later(work, self._now() + pause)

    def _send(
        self,
        works: Sequence[Work],
        outgoing: Sequence[Outgoing],
        sent: Callable[[Sequence[BaseException | None]], None],
    ) -> None:
        """Write, and call ``sent`` where the dispatcher may be touched once the log answered."""
        send = self.job.send
        if send is None:
            raise RuntimeError("this job has nothing to write with")
        self.sending += len(works)
        for work in works:
            work[0].owner.pending += 1

        def answered(errors: Sequence[BaseException | None]) -> None:
            self.sending -= len(works)
            for work in works:
                work[0].owner.pending -= 1
            sent(errors)

        send(outgoing, lambda errors: self.enter(lambda: answered(errors)))

    def _sent(self, work: Work, errors: Sequence[BaseException | None]) -> None:
        """What this message's handler returned was written, or refused."""
        error = next((error for error in errors if error is not None), None)
        if error is None:
            self.settle(work)
        else:
            self.failed(work, error)

    def join(self, joint: Joint, works: Sequence[Work]) -> BaseException | None:
        """Commit the handler's transaction with its messages' places; what went wrong, if so."""
        try:
            joint.commit(works)
        except Fenced as error:
            logger.warning("%s: rolled back, the partition moved on: %r", self.job.name, error)
            for work in works:  # start nothing more of it until the log has said what holds
                work[0].owner.assignment.valid_until = float("-inf")
            return MovedOn(str(error))
        except Unavailable as error:
            return Postponed(str(error))
        except LogError as error:
            return error
        return None


def where(work: Work) -> str:
    """Where a work's message stands, for a log line."""
    batch = work[0].batch
    return f"{batch.topic}/{batch.partition}/{batch.offset(work[1])}"
