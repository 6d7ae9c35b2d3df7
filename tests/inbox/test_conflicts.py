"""Transactions that meet: deadlocks and serialization failures are run again, and no attempts."""

from __future__ import annotations

import asyncio
import threading
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from streams import Processor, Retry, Streams, Topic
from streams.inbox.reruns import RUNS_IN_PLACE
from streams.testing import harness
from tests.inbox.kinds import Kind, Place


class Meeting:
    """Two handlers wait for each other, each the first time that it comes."""

    def __init__(self) -> None:
        self._here: set[str] = set()
        self._both = threading.Event()

    def come(self, name: str) -> None:
        self._here.add(name)
        if len(self._here) == 2:
            self._both.set()
        assert self._both.wait(60), "nobody came"


class Counters:
    """A processor whose handlers update two rows, 0 and 1."""

    def __init__(self, kind: Kind, place: Place, statements: list[str], attempts: int = 1) -> None:
        """
        :param statements: what each handler runs; ``{own}`` is its message's value and ``{other}``
            the other one's. Behind the first one the two handlers meet.
        """
        place.execute("CREATE TABLE counters (id integer PRIMARY KEY, n integer NOT NULL)")
        place.execute("INSERT INTO counters VALUES (0, 0), (1, 0)")
        self.place = place
        self.runs = 0
        self.app = Streams("memory://")
        self.topic: Topic[int] = self.app.topic("numbers", int, partitions=1)
        meeting = Meeting()
        first, *rest = statements

        def filled(statement: str, value: int) -> str:
            return statement.format(own=value, other=1 - value)

        async def handle_async(value: int, message: Any) -> None:
            self.runs += 1
            await kind.write(message.transaction, message.id, value)
            await kind.execute(message.transaction, filled(first, value))
            await asyncio.to_thread(meeting.come, message.id)
            for each in rest:
                await kind.execute(message.transaction, filled(each, value))

        def handle_plain(value: int, message: Any) -> None:
            self.runs += 1
            kind.write(message.transaction, message.id, value)
            kind.execute(message.transaction, filled(first, value))
            meeting.come(message.id)
            for each in rest:
                kind.execute(message.transaction, filled(each, value))

        self.processor: Processor[..., Any] = self.app.processor(
            self.topic,
            group="g",
            concurrency=2,
            transaction=kind.make(place.place),
            retry=Retry(attempts=attempts),
        )(handle_async if kind.asynchronous else handle_plain)

    async def handle_both(self) -> int:
        """Handle a message for each row at once; how often one was run again."""
        async with harness(self.app) as h:
            for number in range(2):
                await self.topic.publish(number, id=f"m{number}", key=str(number))
            await h.settled(within=120)
            stats, inbox = self.processor.stats(), self.processor.inbox
            assert stats is not None
            assert inbox is not None
            assert (stats.dead_letters, stats.retries) == (0, 0)
            assert inbox.stats.committed == 2
            assert self.runs == 2 + inbox.stats.reruns
        assert self.place.effects() == {"m0": 1, "m1": 1}
        return inbox.stats.reruns

    def numbers(self) -> list[int]:
        return [row[0] for row in self.place.execute("SELECT n FROM counters ORDER BY id")]


async def test_two_that_lock_crosswise_are_both_done(server_kind: Kind, postgres: str) -> None:
    """The server ends one of them, which is run again."""
    update = "UPDATE counters SET n = n + 1 WHERE id = {}"
    counters = Counters(
        server_kind, Place(postgres), [update.format("{own}"), update.format("{other}")]
    )
    assert await counters.handle_both() >= 1
    assert counters.numbers() == [2, 2]


LEVELS = {
    # Each waits for the other, and goes on from there.
    "read committed": (
        ["SELECT n FROM counters", "UPDATE counters SET n = n + 1 WHERE id = 0"],
        [2, 0],
    ),
    # Who waited is told that the row is another by now.
    "repeatable read": (
        ["SELECT n FROM counters", "UPDATE counters SET n = n + 1 WHERE id = 0"],
        [2, 0],
    ),
    # Each reads what the other one writes: one after the other they come to 1 and 2.
    "serializable": (
        [
            "SELECT n FROM counters",
            "UPDATE counters SET n = 1 + (SELECT sum(n) FROM counters) WHERE id = {own}",
        ],
        [1, 2],
    ),
}


@pytest.mark.parametrize("level", LEVELS)
async def test_the_level_is_the_connections(server_kind: Kind, postgres: str, level: str) -> None:
    name = conninfo_to_dict(postgres)["dbname"]
    with psycopg.connect(postgres, autocommit=True) as server:
        server.execute(
            f"ALTER DATABASE \"{name}\" SET default_transaction_isolation = '{level}'".encode()
        )
    statements, numbers = LEVELS[level]
    counters = Counters(server_kind, Place(postgres), statements)
    reruns = await counters.handle_both()
    assert sorted(counters.numbers()) == sorted(numbers)
    if level != "read committed":
        assert reruns >= 1


def _conflicts(place: Place, where: str, times: int) -> None:
    """The next ``times`` transactions fail for another's sake: where their message is taken, in a
    statement of the handler's, or at COMMIT."""
    table = "streams_inbox" if where == "take" else "effects"
    kind, timing, deferred = "", "BEFORE", ""
    if where == "commit":
        kind, timing, deferred = "CONSTRAINT", "AFTER", "DEFERRABLE INITIALLY DEFERRED"
    place.execute("CREATE SEQUENCE runs")  # its numbers are not rolled back
    place.execute(
        "CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF nextval('runs') <= {times} THEN "
        "RAISE EXCEPTION 'another was first' USING ERRCODE = 'serialization_failure'; "
        "END IF; RETURN NEW; END $$"
    )
    place.execute(
        f"CREATE {kind} TRIGGER conflict {timing} INSERT ON {table} {deferred} "
        "FOR EACH ROW EXECUTE FUNCTION conflict()"
    )


async def test_five_conflicts_are_a_failed_attempt_and_four_are_none(
    server_kind: Kind, postgres: str
) -> None:
    place = Place(postgres)
    app = Streams("memory://")
    topic = app.topic("numbers", int, partitions=1)
    processor = app.processor(
        topic, group=uuid4().hex, transaction=server_kind.make(postgres),
        retry=Retry(attempts=2, delay=0.001),
    )(server_kind.handler(lambda message: None, lambda message: message.id))  # fmt: skip
    sent = failed = reruns = 0
    async with harness(app) as h:
        await topic.publish(0, id="m0")
        await h.settled()
        inbox = processor.inbox
        assert inbox is not None
        for where in ("take", "handler", "commit"):
            for times in (RUNS_IN_PLACE - 1, RUNS_IN_PLACE):
                _conflicts(place, where, times)
                sent += 1
                # What never came as far as the handler is no attempt of it.
                failed += times == RUNS_IN_PLACE and where != "take"
                reruns += RUNS_IN_PLACE - 1
                await topic.publish(sent, id=f"m{sent}")
                await h.settled(within=120)
                stats = processor.stats()
                assert stats is not None
                assert (stats.retries, stats.dead_letters) == (failed, 0), where
                assert inbox.stats.reruns == reruns, where
                runs = place.execute("SELECT last_value FROM runs")
                assert runs == [(times + 1,)], where
                place.execute("DROP FUNCTION conflict CASCADE")
                place.execute("DROP SEQUENCE runs")
        assert inbox.stats.reachable
    assert place.effects() == {f"m{number}": 1 for number in range(sent + 1)}
