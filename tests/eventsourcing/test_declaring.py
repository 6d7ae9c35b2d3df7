"""What an aggregate refuses to be declared as, and what it says then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypedDict

import pytest
from msgspec import Struct, defstruct
from pydantic import BaseModel, Field

from stream_codecs import Bound, Json
from streams import Streams
from streams.errors import ConfigError
from streams.eventsourcing import Aggregate, Cache, Snapshot
from streams.eventsourcing.state_type import StateType, shape_fingerprint
from streams.eventsourcing.views.document_type import DocumentType
from tests.eventsourcing.bank import (
    Account,
    AccountEvent,
    Closed,
    Deposited,
    Opened,
    Withdrawn,
    accounts,
    evolve,
)


class Untagged(Struct, frozen=True):
    cents: int


class Mutable(Struct):
    cents: int = 0


class NoDefault(Struct, frozen=True):
    owner: str


@dataclass
class MutableData:
    cents: int = 0


@dataclass(frozen=True)
class Data:
    cents: int = 0


class OldDeposited(Struct, tag="deposited-1", frozen=True):
    euros: int


class OlderDeposited(Struct, tag="deposited-0", frozen=True):
    pounds: int


class SameTag(Struct, tag="deposited", frozen=True):
    pence: int


class Typed(TypedDict, total=False):
    cents: int


class MutableModel(BaseModel):
    cents: int = 0


class FrozenModel(BaseModel, frozen=True):
    cents: int


class Unwritable:
    """A type that no codec knows."""


async def evolve_async(state: Account, event: AccountEvent) -> Account:
    return state


class InHeaders:
    """A codec that keeps its schema in headers."""

    def bind(self, type: Any, *, topic: str = "", role: str = "value") -> Bound[Any]:
        return Bound(encode=bytes, decode=bytes, needs_headers=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"event": Untagged | Deposited}, "Untagged has no tag"),
        ({"event": int}, "int has no tag"),
        ({"state": Mutable}, "frozen=True"),
        ({"state": MutableData}, "frozen=True"),
        ({"state": dict}, "use a frozen Struct"),
        ({"state": list[int]}, "use a frozen Struct"),
        ({"state": dict[str, int], "initial": {}}, "use a frozen Struct"),
        ({"state": Typed}, "use a frozen Struct"),
        ({"state": set}, "use a frozen Struct"),
        ({"state": bytearray}, "use a frozen Struct"),
        ({"state": MutableModel}, "frozen=True"),
        ({"state": FrozenModel}, "initial="),
        ({"state": tuple[int, ...], "initial": [1]}, "is no tuple"),
        ({"event": FrozenModel}, "FrozenModel has no tag"),
        ({"event": Data}, "Data has no tag"),
        ({"codec": InHeaders()}, "in headers"),
        ({"state": Unwritable, "snapshot": Snapshot()}, "snapshot="),
        ({"state": NoDefault}, "initial="),
        ({"initial": 5}, "is no Account"),
        ({"evolve": None}, "evolve=None"),
        ({"evolve": evolve_async}, "evolve is an async function"),
        ({"evolve": partial(evolve_async)}, "evolve is an async function"),
        ({"codec": "json"}, "codec='json'"),
        ({"codec": Json}, "give a codec, such as"),
        ({"snapshot": 100}, r"give Snapshot\(every="),
        ({"cache": 3}, r"give Cache\(count="),
        ({"name": ""}, "its name is a text"),
        ({"name": 3}, "its name is a text"),
        ({"final": Untagged}, "not one of its events"),
        ({"name": "no spaces"}, "no spaces"),
        ({"partitions": 0}, "partitions=0"),
        ({"app": "memory://"}, "an app"),
    ],
)
def test_what_cannot_work_is_refused_where_it_is_declared(
    options: dict[str, Any], says: str
) -> None:
    given: dict[str, Any] = {
        "app": Streams("memory://"),
        "name": "accounts",
        "event": AccountEvent,
        "state": Account,
        "evolve": evolve,
        **options,
    }
    with pytest.raises(ConfigError, match=says):
        Aggregate(**given)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Cache, {"count": -1}),
        (Cache, {"bytes": 1.5}),
        (Snapshot, {"every": 0}),
        (Snapshot, {"version": "2"}),
    ],
)
def test_options_are_checked(kind: Callable[..., object], options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be an integer"):
        kind(**options)


@pytest.mark.parametrize(
    ("state", "made", "says"),
    [(Account, "nope", "a str"), (Account, None, "None"), (Data, Account(), "an? Account")],
)
async def test_what_is_folded_into_no_state_is_not_appended(
    state: Any, made: Any, says: str
) -> None:
    app = Streams("memory://")
    bank: Aggregate[Any, Any] = Aggregate(app, "accounts", AccountEvent, state, lambda s, e: made)
    async with app:
        with pytest.raises(TypeError, match=f"evolve returned {says} for Deposited"):
            await bank.append("ada", Deposited(1), expected="any")
        assert (await bank.load("ada")).version == 0


async def test_a_number_may_become_another_kind_of_number() -> None:
    app = Streams("memory://")
    total: Aggregate[Any, float] = Aggregate(
        app, "total", AccountEvent, float, lambda s, e: int(s) + 1
    )
    async with app:
        assert (await total.append("ada", Deposited(1), expected="any")).state == 1


def test_a_state_may_be_any_frozen_type() -> None:
    app = Streams("memory://")
    Aggregate(app, "numbers", Deposited | Withdrawn, int, lambda n, e: n + 1)
    Aggregate(app, "data", Deposited | Withdrawn, Data, lambda s, e: s)
    Aggregate(
        app, "given", Deposited | Withdrawn, NoDefault, lambda s, e: s, initial=NoDefault("x")
    )
    Aggregate(app, "one", Deposited, int, lambda n, e: n + e.cents)
    model: Any = FrozenModel(cents=1)
    Aggregate(app, "model", Deposited, FrozenModel, lambda s, e: s, initial=model)
    pair: Any = tuple[int, int]
    Aggregate(app, "pair", Deposited, pair, lambda s, e: s, initial=(0, 0))
    Aggregate(app, "unwritable", Deposited, Unwritable, lambda s, e: s)


def test_a_models_fields_are_its_shape() -> None:
    def fingerprint(state: Any) -> str:
        return StateType("a", state, state(), None).fingerprint(1)

    class Model(BaseModel, frozen=True):
        cents: int = 0

    before = fingerprint(Model)

    class Model(BaseModel, frozen=True):  # type: ignore[no-redef]
        """A text."""

        cents: int = Field(0, description="Another.", title="Cents")

    assert fingerprint(Model) == before

    class Inner(BaseModel, frozen=True):
        cents: int = 0

    class Model(BaseModel, frozen=True):  # type: ignore[no-redef]
        cents: int = 0
        inner: Inner = Inner()

    deeper = fingerprint(Model)
    assert deeper != before

    class Inner(BaseModel, frozen=True):  # type: ignore[no-redef]
        cents: int = 0
        euros: int = 0

    class Model(BaseModel, frozen=True):  # type: ignore[no-redef]
        cents: int = 0
        inner: Inner = Inner()

    assert fingerprint(Model) != deeper


def shape(type: Any) -> str:
    """The fingerprint of a state's shape, which is that of a document's."""
    found = StateType("a", type, type(), None).fingerprint(0)
    assert DocumentType("a", type, None).fingerprint == found
    return found


def inside(type: Any) -> str:
    """The same of a Struct that has some of these."""
    return shape(defstruct("Holder", [("found", tuple[type, ...] | None, None)], frozen=True))


def test_fields_that_are_known_by_their_place_are_told_by_their_names() -> None:
    """A ``NamedTuple`` and an ``array_like`` Struct are written without names."""

    class Pair(NamedTuple):
        cents: int = 0
        held: int = 0

    class Array(Struct, array_like=True, frozen=True):
        cents: int = 0
        held: int = 0

    class Model(BaseModel, frozen=True):
        pairs: dict[str, Pair] = {}

    before = [*map(shape, (Pair, Array, Model)), *map(inside, (Pair, Array))]
    assert len(set(before)) == 5

    class Pair(NamedTuple):  # type: ignore[no-redef]
        held: int = 0
        cents: int = 0

    class Array(Struct, array_like=True, frozen=True):  # type: ignore[no-redef]
        cents: int = 0
        kept: int = 0

    class Model(BaseModel, frozen=True):  # type: ignore[no-redef]
        pairs: dict[str, Pair] = {}

    after = [*map(shape, (Pair, Array, Model)), *map(inside, (Pair, Array))]
    assert not set(before) & set(after)


def test_fields_that_are_known_by_their_names_may_stand_anywhere() -> None:
    class Total(Struct, frozen=True):
        cents: int = 0
        held: int = 0

    before = shape(Total)

    class Total(Struct, frozen=True):  # type: ignore[no-redef]
        held: int = 0
        cents: int = 0

    assert shape(Total) == before


class Money:
    """A type that only a codec of the user's own can write."""

    cents: int


def test_a_type_without_a_schema_is_told_by_its_fields() -> None:
    class Purse(Struct, frozen=True):
        money: Money

    before = shape_fingerprint(Purse, 1, "")
    assert shape_fingerprint(Purse, 1, "") == before

    class Purse(Struct, frozen=True):  # type: ignore[no-redef]
        money: Money
        held: int = 0

    assert shape_fingerprint(Purse, 1, "") != before

    class Coins:
        cents: int
        euros: int

    before = shape_fingerprint(Coins, 1, "")

    class Coins:  # type: ignore[no-redef]
        euros: int
        cents: int

    assert shape_fingerprint(Coins, 1, "") != before


def test_two_aggregates_cannot_have_one_name() -> None:
    app = Streams("memory://")
    accounts(app)
    with pytest.raises(ConfigError, match="accounts"):
        accounts(app)


def test_an_upcast_that_is_never_reached_is_refused() -> None:
    bank = accounts(Streams("memory://"))
    with pytest.raises(ConfigError, match="an event of today"):
        bank.upcast(Deposited)(lambda old: Deposited(1))
    with pytest.raises(ConfigError, match="never reached"):
        bank.upcast(SameTag)(lambda old: Deposited(1))
    with pytest.raises(ConfigError, match="no tag"):
        bank.upcast(Untagged)(lambda old: Deposited(1))
    bank.upcast(OldDeposited)(lambda old: Deposited(1))
    with pytest.raises(ConfigError, match="one already"):
        bank.upcast(OldDeposited)(lambda old: Deposited(1))
    with pytest.raises(ConfigError, match="a plain function"):
        bank.upcast(OlderDeposited)(5)  # type: ignore[arg-type]

    async def upcast(old: OlderDeposited) -> Deposited:
        return Deposited(1)

    with pytest.raises(ConfigError, match="a plain function"):
        bank.upcast(OlderDeposited)(upcast)


def test_upcasts_that_go_in_a_circle_are_refused() -> None:
    bank = accounts(Streams("memory://"))

    @bank.upcast(OldDeposited)
    def one(old: OldDeposited) -> OlderDeposited:
        return OlderDeposited(1)

    with pytest.raises(ConfigError, match="circle"):

        @bank.upcast(OlderDeposited)
        def two(old: OlderDeposited) -> list[OldDeposited] | Deposited:
            return [OldDeposited(1)]


@pytest.mark.anyio
async def test_an_upcast_that_ends_nowhere_is_refused_when_the_app_is_entered() -> None:
    app = Streams("memory://")
    bank = accounts(app)

    @bank.upcast(OldDeposited)
    def one(old: OldDeposited) -> OlderDeposited:
        return OlderDeposited(1)

    with pytest.raises(ConfigError, match="neither an event of today nor upcast"):
        async with app:
            pass


@pytest.mark.anyio
def test_a_handler_of_events_takes_todays_events() -> None:
    app = Streams("memory://")
    bank = accounts(app)

    @app.processor(bank.events, group="whole")
    def whole(event: AccountEvent) -> None: ...

    with pytest.raises(ConfigError, match=r"topic 'accounts\.events' has .*Opened"):

        @app.processor(bank.events, group="one")
        def one(event: Opened) -> None: ...

    with pytest.raises(ConfigError, match=r"annotated str"):

        @app.processor(bank.events, group="text")
        def text(event: str) -> None: ...


async def test_an_event_topic_takes_no_messages() -> None:
    app, other = Streams("memory://event-topic"), Streams("memory://event-topic")
    bank = accounts(app, final=Closed)
    from streams.errors import EventTopicError

    async with app:
        with pytest.raises(EventTopicError, match="published to"):
            await bank.events.publish(Opened("ada"))
        with pytest.raises(EventTopicError, match="published to"):
            await bank.events.publish_many([Opened("ada")])
        with pytest.raises(EventTopicError, match="published to"):
            async with other.connected():
                await other.topic("accounts.events").publish(b"x", key="a")
    with pytest.raises(ConfigError, match=r"read it as aggregate\.events"):
        app.topic("accounts.events", dict)
