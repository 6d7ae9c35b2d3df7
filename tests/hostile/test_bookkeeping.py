"""What the toolkit keeps beside the topics, damaged or forged: where groups are, who belongs to
them, what topics are like, claims, and the names that others give to their groups."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import apsw
import pytest
from hypothesis import strategies as st
from redis import Redis

from stream_codecs import DecodeError
from streams import LogError, Message, Streams, StreamsError, View
from streams.engine.progress import encode_progress
from streams.eventsourcing.views.operations import connected_operator
from streams.eventsourcing.views.registry import TOPIC as REGISTRY
from streams.log.event_headers import make_append
from streams.log.events import NO_HISTORY, EventLog
from streams.log.names import partition_for
from streams.log.protocol import Committed
from streams.log.redis.keys import DocumentKeys, PartitionKeys, members_key, topic_key, topics_key
from streams.message import Record
from streams.patterns import (
    IdempotencyStore,
    IdempotentProcessor,
    InProgress,
    KeyReused,
    OperationFailed,
)
from tests.cli.conftest import eventually
from tests.conformance.logs import LEASE, Case
from tests.conformance.stage import QUICK
from tests.eventsourcing.bank import deposit
from tests.hostile import kafka_wire
from tests.hostile.commands import command, lists
from tests.hostile.generate import NUMBERS, TEXTS, any_text, any_value, anything, pick
from tests.hostile.ground import Ground
from tests.hostile.patterns import Views
from tests.hostile.test_suite import made, views_listed
from tests.processing.support import until
from tests.servers.kafka import Kafka
from tests.servers.lifetime import Lifetime
from tests.servers.redis import Redis as OwnRedis
from tests.views.bank import Bank, Holder, fold_holder, unique

pytestmark = pytest.mark.anyio

GROUPS = 16
"""As many groups read the topic at once, each with a damage of its own."""

MESSAGES = 20
"""Messages in the topic before anybody reads it."""

FIELDS = st.lists(any_text(), min_size=1, max_size=3).map(b",".join)


def forged() -> st.SearchStrategy[Committed]:
    """Positions and progress that a group may have, or not."""
    position = st.integers(0, MESSAGES + 3) | pick([2**31, 2**53, 2**62])
    ranges = st.lists(st.integers(0, 200), min_size=2, max_size=6, unique=True).map(sorted)

    @st.composite
    def build(draw: st.DrawFn) -> Committed:
        at, numbers = draw(position), draw(ranges)
        pairs = list(zip(numbers[::2], numbers[1::2], strict=False))
        settled = [(at + 1 + low, at + 1 + high) for low, high in pairs]
        written = encode_progress(at, draw(st.integers(0, at)), settled).progress
        cut = draw(st.integers(0, len(written)))
        odd = draw(pick(["", "~", "9" * 50, "\u0663", " ", "AAAA", "-", "z" * 3_000]))
        how = draw(st.integers(0, 3))
        text = [written, written[:cut] + odd, odd, written[:cut] + odd + written[cut:]][how]
        return Committed(at, text[:4_000])

    return build()


@contextmanager
def reading(stage: Ground, groups: list[str]) -> Iterator[tuple[Streams, dict[str, set[int]]]]:
    """An app with a processor for each of these groups, and what each of them handled."""
    app = stage.app()
    topic = stage.topic(app, int, partitions=1)
    seen: dict[str, set[int]] = {group: set() for group in groups}

    def processor(group: str) -> None:
        async def handle(value: int, message: Message[int]) -> None:
            seen[group].add(value)

        handle.__name__ = f"handle_{group}"
        app.processor(topic, group=group, flow=QUICK)(handle)

    for group in groups:
        processor(group)
    yield app, seen


def fill(stage: Ground) -> None:
    stage.create(stage.topic_name)
    values = [kafka_wire.Written(b"%d" % n, b"k%d" % (n % 5)) for n in range(MESSAGES)]
    stage.write(stage.topic_name, values)


async def test_positions_that_make_no_sense(stage: Ground) -> None:
    """Whatever is committed, what is published from then on is handled, or health says why not."""
    fill(stage)
    groups = [f"{stage.group}-{n}" for n in range(GROUPS)]
    first, _ = stage.anchor.watermarks(stage.topic_name, 0)
    places = dict(zip(groups, made(forged(), GROUPS), strict=False))
    for group, place in places.items():
        stage.anchor.initialize_offsets(group, stage.topic_name, {0: first})
        stage.anchor.reset_offsets(
            group, stage.topic_name, {0: place._replace(position=first + place.position)}
        )
    wanted = set(range(1_000, 1_010))
    with reading(stage, groups) as (app, seen):
        async with app:

            def begun() -> bool:
                health = app.health().processors
                return all(
                    each.partitions or not health[name].ok
                    for name, each in app.stats().processors.items()
                )

            # What is settled, as a place says, is held against the log as it is when that is read:
            # what is published before could be settled, and nobody could tell.
            await until(begun)
            for value in sorted(wanted):
                await app.topics[stage.topic_name].publish(value, key=f"k{value}")

            def stuck() -> dict[str, Committed]:
                found = zip(app.processors, app.health().processors.values(), strict=True)
                well = {processor.group for processor, each in found if each.ok}
                return {
                    group: places[group]
                    for group in groups
                    if not seen[group] >= wanted and group in well
                }

            with suppress(AssertionError):
                await until(lambda: not stuck())
            # Each goes on, or health says that it does not.
            assert not stuck()
    for group in groups[:3]:
        lists(stage.url, "groups", "show", group)


# -- Redis and SQLite


@pytest.fixture
def alone(case: Case, lifetime: Lifetime, request: pytest.FixtureRequest) -> Iterator[Ground]:
    """A server, or a file, of the test's own. What lists all groups asks for each, and on the
    session's server there are those of every test."""
    if case.name == "sqlite":
        yield request.getfixturevalue("stage")
        return
    settings = f"lease={LEASE:g}" if case.name == "redis" else ""
    patient = {"broker.session.timeout.ms": "120000"}  # nobody kills it
    with Kafka(lifetime, config=patient) if case.name == "kafka" else OwnRedis(lifetime) as own:
        opened = Ground(case, f"{own.url}?{settings}".rstrip("?"))
        yield opened
        opened.close()


@contextmanager
def server(stage: Ground) -> Iterator[Redis]:
    place = urlsplit(stage.url)
    with Redis(host=place.hostname or "", port=place.port or 0) as redis:
        yield redis


@contextmanager
def file(stage: Ground) -> Iterator[apsw.Connection]:
    """The log's file, by the library that the log uses: two in one process break its locks."""
    path = stage.url.removeprefix("sqlite:///").partition("?")[0]
    with closing(apsw.Connection(path)) as connection:
        connection.set_busy_timeout(60_000)
        yield connection


COLUMNS: list[Any] = [
    None, 0, 1, -1, 2**53, 2**63 - 1, -(2**63), 1.5, -1e300, float("inf"), float("-inf"),
    "", "x", "1", "1e400", "nan", "\x00", "[" * 3_000, b"", b"=1", b"!{}", b"\xff" * 9,
    b"x" * 9_000,
]  # fmt: skip
ODD: list[Any] = [b"\xff" * 9, b"\xff", "x", float("inf")]
"""Of these, what readers have stumbled over."""


def hashes(stage: Ground) -> dict[bytes, list[bytes]]:
    """The keys of a group's and a topic's hashes, and their fields."""
    part = PartitionKeys(stage.topic_name, 0, 1)
    row = ["owner", "epoch", "until", "position", "progress", "version", "read", "window", "floor"]
    return {
        part.group_key(stage.group): [name.encode() for name in row],
        members_key(stage.group): [b"somebody", b"\xff", b"m" * 300],
        topics_key(stage.group): [stage.topic_name.encode(), b"\xff"],
        topic_key(stage.topic_name): [b"partitions", b"seconds", b"messages", b"most"],
    }


Damage = Callable[[], Callable[[], None]]
"""Damages something, and returns what undoes it."""


def damaged_hashes(stage: Ground, count: int) -> list[tuple[str, Damage]]:
    kinds = hashes(stage)

    def damage(key: bytes, field: bytes, value: bytes) -> Callable[[], None]:
        with server(stage) as redis:
            before: dict[Any, Any] = redis.hgetall(key)
            redis.hset(key, field, value)

        def undo() -> None:
            with server(stage) as redis:
                redis.delete(key)
                if before:
                    redis.hset(key, mapping=before)

        return undo

    choices = st.tuples(pick(list(kinds)), st.integers(0, 8), FIELDS | pick(NUMBERS + TEXTS))
    found: list[tuple[str, Damage]] = []
    for key, at, value in made(choices, count):
        field = kinds[key][at % len(kinds[key])]
        what = f"HSET {key!r} {field!r} {value[:40]!r}"
        found.append((what, partial(damage, key, field, value)))
    return found


ROWS = {
    "streams_members": ["no", "group", "id", "topics", "expires", "timeline"],
    "streams_places": ["position", "progress", "epoch", "owner"],
    "streams_groups": ["window", "generation"],
    "streams_topics": ["seconds", "messages"],
}
"""Where a SQLite log says where groups are, who belongs to them, and what topics are like."""


def damaged_rows(stage: Ground, count: int) -> list[tuple[str, Damage]]:
    insert = "INSERT OR IGNORE INTO streams_members VALUES (77, ?, 'somebody', ?, 1e9, 'x')"

    def damage(table: str, column: str, value: Any, as_text: bool) -> Callable[[], None]:
        with file(stage) as db:
            before = db.execute(f"SELECT * FROM {table}").fetchall()
            if table == "streams_members":
                db.execute(insert, (stage.group, f'["{stage.topic_name}"]'))
            change = "CAST(? AS TEXT)" if as_text and isinstance(value, bytes) else "?"
            with suppress(apsw.MismatchError):  # the number of a row is one
                db.execute(f'UPDATE OR IGNORE {table} SET "{column}" = {change}', (value,))

        def undo() -> None:
            with file(stage) as db, db:
                db.execute(f"DELETE FROM {table}")
                for row in before:
                    marks = ", ".join("?" * len(row))
                    db.execute(f"INSERT INTO {table} VALUES ({marks})", row)

        return undo

    columns = [(table, column) for table, columns in ROWS.items() for column in columns]
    return [
        (f"{table}.{column} = {value!r:.40}", partial(damage, table, column, value, as_text))
        for (table, column), value, as_text in made(
            st.tuples(pick(columns), pick(COLUMNS) | pick(ODD), st.booleans()), count
        )
    ]


@pytest.mark.short_lease  # an owner that does not exist has the partition until its lease is over
@pytest.mark.only("redis", "sqlite")
@pytest.mark.parametrize("examples", [12, pytest.param(100, marks=pytest.mark.faults)])
async def test_rows_that_make_no_sense(alone: Ground, examples: int) -> None:
    """What is damaged ends in an error of ours or in nothing at all, and the group goes on."""
    stage = alone
    fill(stage)
    damages = damaged_rows if stage.case.name == "sqlite" else damaged_hashes
    problems: list[str] = []
    for what, damage in damages(stage, examples):
        undo = damage()
        for words in (["groups", "ls"], ["groups", "show", stage.group], ["topics", "ls"]):
            try:
                command(stage.url, *words)
            except AssertionError as error:
                problems.append(f"{what}: streams {' '.join(words)}: {str(error)[:300]}")
        try:
            with reading(stage, [stage.group]) as (app, seen):
                async with asyncio.timeout(60):
                    async with app:
                        await app.topics[stage.topic_name].publish(7_000, key="k")
                        await until(
                            lambda seen=seen, app=app: (
                                7_000 in seen[stage.group]  # type: ignore[misc]
                                or not app.health().ok
                            )
                        )
        except StreamsError:
            pass  # one line that says what is wrong
        except BaseException as error:
            problems.append(f"{what}: {error!r} from {error.__cause__!r}")
        undo()
    assert not problems, "\n".join(problems)


# -- documents of views

ACCOUNT, OTHER = "a", "d"
"""Accounts in two partitions; what is damaged is of the first one."""

assert partition_for(ACCOUNT.encode(), "", 2) != partition_for(OTHER.encode(), "", 2)

DOCUMENT_ROWS = {
    "streams_checkpoints": ["epoch", "position", "data"],
    "streams_documents": ["key", "value", "failure"],
}

DamageDocuments = Callable[[str, int], None]
"""Damages a partition of a collection."""


def damaged_document_rows(stage: Ground, count: int) -> list[tuple[str, DamageDocuments]]:
    def damage(
        table: str, column: str, value: Any, as_text: bool, collection: str, partition: int
    ) -> None:
        change = "CAST(? AS TEXT)" if as_text and isinstance(value, bytes) else "?"
        with file(stage) as db:
            db.execute(
                f"UPDATE OR IGNORE {table} SET {column} = {change} WHERE no ="
                " (SELECT no FROM streams_checkpoints WHERE collection = ? AND partition = ?)",
                (value, collection, partition),
            )

    columns = [(table, column) for table, columns in DOCUMENT_ROWS.items() for column in columns]
    chosen = made(st.tuples(pick(columns), pick(COLUMNS) | pick(ODD), st.booleans()), count)
    return [
        (f"{table}.{column} = {value!r:.40}", partial(damage, table, column, value, as_text))
        for (table, column), value, as_text in [
            (("streams_checkpoints", "position"), "x", False),
            (("streams_checkpoints", "data"), 7, False),
            *chosen,
        ]
    ]


def damaged_document_keys(stage: Ground, count: int) -> list[tuple[str, DamageDocuments]]:
    def damage(part: str, field: bytes, value: bytes, collection: str, partition: int) -> None:
        keys = DocumentKeys(collection, partition)
        with server(stage) as redis:
            if part == "other":  # no hash at all
                redis.delete(keys.checkpoint)
                redis.set(keys.checkpoint, value)
                return
            redis.hset(getattr(keys, part), field, value)
            if part == "failures":
                redis.zadd(keys.stopped, {field: 0})

    fields = [
        *(("checkpoint", each) for each in (b"writer", b"writes", b"position", b"data")),
        ("values", ACCOUNT.encode()),
        ("failures", ACCOUNT.encode()),
        ("other", b""),
    ]
    return [
        (f"{part} {field!r} = {value[:40]!r}", partial(damage, part, field, value))
        for (part, field), value in [
            (("checkpoint", b"position"), b"zzz"),
            (("other", b""), b"x"),
            *made(st.tuples(pick(fields), FIELDS | pick(NUMBERS + TEXTS)), count),
        ]
    ]


@pytest.mark.only("redis", "sqlite")
@pytest.mark.parametrize("examples", [4, pytest.param(60, marks=pytest.mark.faults)])
async def test_documents_and_checkpoints_that_make_no_sense(alone: Ground, examples: int) -> None:
    """What is damaged of one partition ends in an error of ours or in nothing at all, of a view and
    of one whose events are written again by key. The processors live and the other partition goes
    on, commands show what there is, and a rebuild makes all whole."""
    stage, name = alone, unique()
    is_sqlite = stage.case.name == "sqlite"
    damages = (damaged_document_rows if is_sqlite else damaged_document_keys)(stage, examples)
    partition = partition_for(ACCOUNT.encode(), "", 2)
    problems: list[str] = []
    for number, (what, damage) in enumerate(damages):
        bank, again = Bank(stage.app(), name), Bank(stage.app(), name)
        for each in (bank, again):
            keyed: View[Holder] = each.accounts.view(
                "keyed", Holder, key=lambda event: [ACCOUNT, OTHER]
            )(fold_holder)
        async with bank.app:  # all is whole
            for account in (ACCOUNT, OTHER):
                done = await bank.accounts.decide(account, deposit, number)
                await bank.balances.get(account, wait_for=done, timeout=60)
        is_keyed = number % 2 == 1
        damaged = keyed if is_keyed else again.balances
        damage(f"{damaged.name}.v1", partition)
        try:
            async with asyncio.timeout(60), again.app:
                await again.accounts.decide(ACCOUNT, deposit, 1)
                done = await again.accounts.decide(OTHER, deposit, 1)
                found = await again.balances.get(OTHER, wait_for=done, timeout=60)
                assert found is not None
                assert found.cents == done.state.cents
                for view in (again.balances, keyed):
                    with suppress(StreamsError):
                        await view.get(ACCOUNT)
        except BaseException as error:
            problems.append(f"{what}: {error!r} from {error.__cause__!r}")
        for words in (["ls"], ["show", damaged.name], ["stopped", damaged.name]):
            try:
                ended = command(stage.url, "views", *words)
                assert words != ["ls"] or (ended.status == 0 and damaged.name in ended.out), ended
            except AssertionError as error:
                problems.append(f"{what}: streams views {' '.join(words)}: {str(error)[:300]}")
        for view in (again.balances, keyed):
            async with connected_operator(stage.url, view.name) as operator:
                await operator.rebuild(1, heard_after=0.0)
    assert not problems, "\n".join(problems)


def damaged_claims(stage: Ground, count: int) -> list[Callable[[str, str], None]]:
    """Each damages the claim of a store and a key, where there is one."""
    if stage.case.name == "sqlite":
        names = ["token", "fingerprint", "value", "lease", "timeline", "until", "expires"]
        columns = st.tuples(pick(names), pick(COLUMNS) | pick(ODD), st.booleans())

        def damage_row(store: str, key: str, name: str, value: Any, as_text: bool) -> None:
            place = f"{store}:{key}".encode()
            if as_text and isinstance(value, bytes):  # text that is not UTF-8, perhaps
                change = f"UPDATE OR IGNORE streams_claims SET {name} = CAST(? AS TEXT)"
            else:
                change = f"UPDATE OR IGNORE streams_claims SET {name} = ?"
            with file(stage) as db:
                db.execute(f"{change} WHERE key = ?", (value, place))

        return [
            lambda store, key, each=each: damage_row(store, key, *each)  # type: ignore[misc]
            for each in made(columns, count)
        ]
    fields = [b"token", b"beat", b"lease", b"until", b"fingerprint", b"value"]
    row = st.dictionaries(
        pick(fields), FIELDS | pick([*NUMBERS, b"=1", b"!{}", b"!", b"="]), min_size=1
    )

    def damage_hash(store: str, key: str, fields: dict[bytes, bytes]) -> None:
        with server(stage) as redis:
            redis.hset(f"streams:claims:{store}:{key}", mapping=dict[Any, Any](fields))

    return [
        lambda store, key, each=each: damage_hash(store, key, each)  # type: ignore[misc]
        for each in made(row, count)
    ]


@pytest.mark.only("redis", "sqlite")
async def test_claims_that_make_no_sense(stage: Ground) -> None:
    """What is done is done again in silence by no damage, its caller is told in an error of ours
    that names the key, and who asks in the same moment for other keys is answered."""
    name = f"claims-{uuid4().hex[:8]}"
    calls: Counter[str] = Counter()

    def operation(key: str) -> Callable[[], int]:
        return lambda: calls.update([key]) or 1

    problems: list[str] = []
    async with IdempotencyStore(stage.url, name=name) as store:
        processor = IdempotentProcessor(store, wait=False)
        for number, damage in enumerate(damaged_claims(stage, 60)):
            done, held, good = (f"{what}-{number}" for what in ("done", "held", "good"))
            assert await processor.process(done, operation(done)) == 1
            token = await store.claim(held)
            assert token
            damage(name, done)
            damage(name, held)
            answers = await asyncio.wait_for(
                asyncio.gather(
                    *(processor.process(key, operation(key)) for key in (done, held, good)),
                    store.renew(held, token),
                    return_exceptions=True,
                ),
                20,
            )
            for key, answer in zip((done, held), answers, strict=False):
                if isinstance(answer, InProgress | DecodeError | KeyReused | OperationFailed):
                    continue
                if type(answer) is LogError and key in str(answer) and "forget" in str(answer):
                    continue
                if isinstance(answer, BaseException):
                    problems.append(f"{number}: {key}: {answer!r} from {answer.__cause__!r}")
            if answers[2] != 1 or calls[good] != 1:
                problems.append(f"{number}: what was asked beside it: {answers[2]!r}")
            # (In a file a number may say that a lease has long been over.)
            if calls[done] != 1 or (calls[held] and stage.case.name == "redis"):
                problems.append(f"{number}: what was done is done again in silence")
            await store.forget(done)  # what the error says helps
            assert await processor.process(done, operation(done)) == 1
    assert not problems, "\n".join(problems)


# -- Kafka


@pytest.mark.only("kafka")
def test_groups_that_others_named(alone: Ground) -> None:
    """Kafka takes any bytes for the name of a group, and any for what is committed."""
    stage = alone
    fill(stage)
    broker = urlsplit(stage.url).netloc
    run = uuid4().hex[:8].encode()
    stage.anchor.initialize_offsets(stage.group, stage.topic_name, {0: 0})
    for name in (b"g\xff" + run, b"a b/c\n" + run, b"\x1b[31m" + run, b"g" * 3_000 + run):
        kafka_wire.commit(broker, name, stage.topic_name, {0: (3, b"\xff\xfe")})
    listed = lists(stage.url, "groups", "ls", "--all").documents[0]
    assert stage.group in {each["group"] for each in listed}


# -- the registry of views


@pytest.mark.only("redis", "sqlite")
def test_a_registry_of_views_that_others_wrote_to(alone: Ground) -> None:
    """What makes no sense in it is of other views, and stops none."""
    stage, log = alone, alone.anchor
    assert isinstance(log, EventLog)
    service = Views(stage)
    service.start()
    try:
        service.goes_on()
        values = made(any_value().map(lambda value: value or b""), 12)
        outcomes: list[Any] = []
        for at, value in enumerate(values):
            key = b"view-%d\xff" % at
            append = make_append(key, NO_HISTORY, [Record(value, key, f"evil-{at}")])
            log.append_events(REGISTRY, [append], outcomes.extend)
        eventually(lambda: len(outcomes) == len(values))
        assert not [each for each in outcomes if isinstance(each, Exception)]
        if stage.case.name == "redis":  # elsewhere nothing but appends gets there
            stage.write(REGISTRY, made(anything(), 12))
        service.goes_on()
    finally:
        service.stop()
    service.start()
    try:
        service.goes_on()
        rows = lists(stage.url, "views", "ls").documents[0]
        assert {service.sums.name, service.by_number.name} <= {each["view"] for each in rows}
        views_listed(service)
    finally:
        service.stop()
