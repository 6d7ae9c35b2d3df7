"""Records that anyone can write, of every kind that the toolkit reads.

Two ways lead to one: bytes without any thought of us, and a control record of our own, as our code
writes it, of which some parts were replaced. The second gets further in before something breaks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
from hypothesis import strategies as st

from streams import derived_records, message
from streams.eventsourcing.views import keyed_records
from streams.log.documents import FAILURE_HEADER
from streams.log.kafka import document_records as documents
from streams.message import Headers, Record
from streams.parking import records as parking_records
from streams.patterns import choreography
from streams.patterns.saga.journal_entry import JournalEntry
from streams.retries import records as delay
from streams.retries.attempt_log import COPY, STARTS_OVER, delay_topic
from tests.hostile.kafka_wire import Written

NAMES = [
    message.ID, message.SOURCE, message.TYPE, message.TIME, message.CORRELATION,
    message.CAUSATION, message.REDRIVE, message.UNREADABLE, "traceparent", "tracestate",
    derived_records.ERROR_EXCEPTION, derived_records.ERROR_MESSAGE,
    derived_records.ERROR_STACKTRACE, derived_records.ERROR_TOPIC, derived_records.ERROR_PARTITION,
    derived_records.ERROR_OFFSET, derived_records.ERROR_ATTEMPTS, derived_records.ERROR_GROUP,
    derived_records.ERROR_TIME, derived_records.ORIGIN,
    derived_records.FIRST_FAILED, derived_records.FIRST_ERROR, derived_records.EDITED,
    delay.DUE, delay.TOPIC, delay.KEY, delay.NULL, delay.MESSAGE, delay.MARK, delay.REQUEST,
    delay.END,
    parking_records.KIND, parking_records.OWNER, parking_records.OFFSET, parking_records.TIME,
    parking_records.MESSAGE_ID, parking_records.TARGET, parking_records.AFTER_RESET,
    choreography.STEP_HEADER, choreography.STATUS_HEADER, choreography.ERROR_HEADER,
    keyed_records.HEADER, documents.DOCUMENT, FAILURE_HEADER, documents.CHECKPOINT,
    "value", "key", "null:value", "header:key", "null:", "",
]  # fmt: skip
"""Every header name that means something to us."""

NUMBERS = [
    b"0", b"1", b"7", b"-1", b"+1", b"00000000001", b" 1", b"1_000", b"0x10", b"1.5", b"1e3",
    b"1e300", b"1e999", b"nan", b"inf", b"-inf", b"9" * 18, b"9" * 19, b"9" * 4_000, b"9" * 5_000,
    str(2**31).encode(), str(2**63 - 1).encode(), str(2**63).encode(), str(2**128).encode(),
    "٣".encode(), "²".encode(), b"300000000000000-0", b"", b"\xff",
]  # fmt: skip

TIMES = [
    b"2013-01-05T10:00:00Z", b"0001-01-01T00:00:00+14:00", b"9999-12-31T23:59:59-14:00",
    b"10000-01-01T00:00:00Z", b"11476-01-01", b"2013-13-45", b"24:00", b"2013-01-05T10:00:00+99:99",
]  # fmt: skip

TEXTS = [
    b"\xff\xfe", b"a\0b", b"\0", b"a\nb\r\n", b"\x1b[31mred", "\u202eexe.txt".encode(),
    b"\xed\xa0\x80", "ü".encode(), b"x" * 5_000, b"{", b"%s%n", b"../../etc/passwd", b"=1+1",
]  # fmt: skip
"""Not UTF-8, NUL, lines, what steers a terminal, half a surrogate pair, long, and so on."""

CLOCKS = [
    0, -1, -(2**40), -(2**62), 1, 1_700_000_000_000, 253_402_300_800_000, 300_000_000_000_000,
    2**53, 2**62, 2**63 - 2**32,
]  # fmt: skip
"""Times of a log, in milliseconds since the epoch."""

DOCUMENTS = [
    b"{}", b"[]", b"null", b"1", b"-1", b'"x"', b"{", b"[" * 50_000, b"[" * 900 + b"]" * 900,
    b'{"n":1e400}', b'{"n":' + b"9" * 5_000 + b"}", b'{"n":' + b"9" * 40 + b"}", b'{"n":1.5}',
    b'{"n":NaN}', b'{"n":"\\ud800"}', b'{"n":null}', b"\xff", b"\x00", b"\xef\xbb\xbf{}",
    b'{"n":1,"n":2}', b'{"\\u0000":1}', b" " * 10_000 + b"1",
]  # fmt: skip


T = TypeVar("T")


def pick(found: Sequence[T]) -> st.SearchStrategy[T]:
    """One of these. (``sampled_from`` would show all of them wherever the strategy is shown.)"""
    return st.integers(0, len(found) - 1).map(lambda at: found[at])


def any_text() -> st.SearchStrategy[bytes]:
    return pick(TEXTS) | st.binary(max_size=12) | pick(NUMBERS + TIMES)


def any_value() -> st.SearchStrategy[bytes | None]:
    return st.none() | pick(DOCUMENTS) | any_text()


def any_headers() -> st.SearchStrategy[list[tuple[bytes, bytes | None]]]:
    name = pick(NAMES).map(str.encode) | any_text()
    return st.lists(st.tuples(name, st.none() | any_text()), max_size=5)


def anything() -> st.SearchStrategy[Written]:
    """Bytes without any thought of us."""
    key = st.none() | any_text()
    return st.builds(Written, any_value(), key, any_headers(), pick(CLOCKS))


def altered(record: Record) -> st.SearchStrategy[Written]:
    """A record of ours, of which some parts were replaced, lost or doubled."""
    pairs: list[tuple[bytes, bytes | None]] = [
        (message.ID.encode(), record.id.encode("utf-8", "surrogateescape")),
        *((name.encode("utf-8", "surrogateescape"), value) for name, value in record.headers),
    ]

    @st.composite
    def build(draw: st.DrawFn) -> Written:
        headers: list[tuple[bytes, bytes | None]] = []
        for pair in pairs:
            change = draw(pick(["keep"] * 6 + ["value", "value", "lose", "twice", "name"]))
            if change == "lose":
                continue
            name, value = pair
            if change == "name":
                name = draw(any_text())
            if change == "value":
                value = draw(st.none() | any_text())
            headers += [(name, value)] * (2 if change == "twice" else 1)
        value = record.value if draw(st.integers(0, 3)) else draw(any_value())
        key = record.key if draw(st.integers(0, 3)) else draw(st.none() | any_text())
        return Written(value, key, headers, draw(pick(CLOCKS)))

    return build()


def document(found: Any) -> st.SearchStrategy[bytes]:
    """A JSON object, of which some members were replaced."""
    members = msgspec.to_builtins(found)
    odd: st.SearchStrategy[Any] = pick(
        [None, -1, 0, 1, 10**30, 1e300, -1e300, "", "x" * 3_000, [], [[]], {}, [["pay"]], True]
    )

    @st.composite
    def build(draw: st.DrawFn) -> bytes:
        changed = {
            name: member if draw(st.integers(0, 3)) else draw(odd)
            for name, member in members.items()
        }
        return json.dumps(changed).encode()

    return build()


# -- the kinds of records that the toolkit writes


def source(n: int) -> list[Record]:
    return [Record(b'{"n":%d}' % n, b"k%d" % (n % 3), f"m{n}", ((message.REDRIVE, b"1"),))]


def letter(n: int, topic: str, group: str) -> list[Record]:
    headers: Headers = derived_records.error_headers(
        ValueError("why"), 3, group, (topic, 0, str(n)), "2024-01-01T00:00:00+00:00"
    )
    return [Record(b'{"n":%d}' % n, b"k1", f"m{n}", headers)]


def delayed(n: int, to: str) -> list[Record]:
    inner = Record(b'{"n":%d}' % n, b"k", f"m{n}", ((message.TIME, b"2024-01-01T00:00:00Z"),))
    return [
        delay.entry_record(inner, to, 1_700_000_000_000),
        delay.entry_record(inner, to, 4_000_000_000_000),
        delay.mark_record(f"m{n}".encode(), "delivered", f"x{n}", "r", end=n),
        delay.cancel_record(f"m{n}", f"r{n}"),
    ]


def note(n: int, topic: str, group: str) -> list[Record]:
    place, copy = f"{topic}/0/{n}", f"{delay_topic(topic, group)}/0/{n}".encode()
    return [
        Record(b"1", place.encode(), f"{place}/1"),
        Record(b"1", place.encode(), f"{place}/1", ((message.GENERATION, b"1"),)),
        Record(b"1073741824", place.encode(), place),
        Record(b"1073741824", place.encode(), place, ((COPY, copy),)),
        Record(topic.encode(), STARTS_OVER, f"{place}/start"),
    ]


def behind(n: int, key: bytes) -> list[Record]:
    """Everything that stands in a topic of parked messages, but for who owns it."""
    inner = Record(b'{"n":%d}' % n, key, f"m{n}", ((message.REDRIVE, b"1"),))
    return [
        parking_records.parked_record("dead", "nobody", 0, n, inner, 1.7e9),
        parking_records.parked_record("waits", "nobody", 0, n, inner, 1.7e9),
        parking_records.done_record("nobody", 0, n, key),
        parking_records.command_record("retry", n, 0, key, f"c{n}"),
        parking_records.command_record("edit", n, 0, key, f"e{n}", inner),
        parking_records.command_record("drop", n, 0, key, f"d{n}"),
    ]


def journal(n: int) -> st.SearchStrategy[Written]:
    entry = JournalEntry(
        saga=f"s{n}", n=1, context={"n": n}, plan=(("pay",),), done=(), due=1.0, at=1.7e9
    )

    def written(value: bytes, key: bytes) -> Written:
        return Written(value, key, ((b"ce_id", b"s%d/1" % n),))

    return st.builds(written, document(entry), pick([b"s%d" % n, b"s%d" % (n + 1), b""]))


def event(n: int) -> list[Record]:
    return [
        Record(b'{"n":%d}' % n, None, f"e{n}", ((message.TYPE, b"order.paid"),)),
        Record(b'{"n":%d}' % n, b"k", f"f{n}", ((message.TYPE, b"." * 5_000),)),
    ]


def kinds(names: Callable[[str], str], group: str) -> dict[str, st.SearchStrategy[Written]]:
    """How hostile records are made, by the topic that they go to.

    :param names: the full name of a topic.
    """
    orders, ordered = names("orders"), names("ordered")
    makers: dict[str, Callable[[int], Sequence[Record]]] = {
        orders: source,
        f"{orders}.{group}.retry": source,
        f"{orders}.{group}.dead": lambda n: letter(n, orders, group),
        f"{orders}.{group}.delay": lambda n: delayed(n, orders),
        f"{orders}.{group}.attempts": lambda n: note(n, orders, group),
        ordered: source,
        f"{ordered}.{group}.retry": source,
        f"{ordered}.{group}.parked": lambda n: behind(n, b"k%d" % (n % 3)),
        names("delays"): lambda n: delayed(n, orders),
        names("events"): event,
    }
    found = {topic: mixed(make) for topic, make in makers.items()}
    saga = st.integers(0, 20).flatmap(journal)
    found[f"{names('saga')}.saga"] = saga | mixed(source)
    return found


def mixed(make: Callable[[int], Sequence[Record]]) -> st.SearchStrategy[Written]:
    """Records of ours, altered, and anything else."""
    ours = st.integers(0, 20).flatmap(lambda n: pick(make(n)).flatmap(altered))
    return ours | anything()


def bundle(
    kinds: dict[str, st.SearchStrategy[Written]],
) -> st.SearchStrategy[dict[str, list[Written]]]:
    """Some records for each topic."""
    return st.fixed_dictionaries(
        {topic: st.lists(record, min_size=1, max_size=4) for topic, record in kinds.items()}
    )
