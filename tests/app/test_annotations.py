"""What a handler's annotations say is compared with its topics when it is declared."""

from __future__ import annotations

import functools
import re
from collections.abc import (
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    MutableSequence,
    Sequence,
)
from dataclasses import dataclass
from datetime import date, datetime
from enum import Enum
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    Protocol,
    TypedDict,
    TypeVar,
    Union,
    get_origin,
)

import msgspec
import pydantic
import pytest
from typing_extensions import TypeAliasType

from stream_codecs import Bound, Json, Role
from streams import ConfigError, Message, Processor, Streams, Topic, Transaction
from streams.processor import ProcessorOptions
from streams.replay import replay
from streams.testing import harness

T = TypeVar("T")
Bounded = TypeVar("Bounded", bound="Can")


class Dep(msgspec.Struct, tag="dep"):
    n: int


class Can(msgspec.Struct, tag="can"):
    n: int


class Late(Dep, tag="late"):
    minutes: int = 0


@dataclass
class Order:
    customer: str


@dataclass
class Refund:
    customer: str


class Envelope(msgspec.Struct, Generic[T]):
    data: T


class Item(TypedDict):
    name: str
    price: NotRequired[int]


class Named(TypedDict):
    name: str


class Priced(TypedDict):
    price: int


class Maybe(TypedDict, total=False):
    weight: int


class Point(NamedTuple):
    x: int
    y: int


class Colour(Enum):
    RED = "red"


class Model(pydantic.BaseModel):
    kind: Literal["model"] = "model"


class Other(pydantic.BaseModel):
    kind: Literal["other"] = "other"


class HasN(Protocol):
    n: int


class Loose(Any):  # type: ignore[misc]
    """What can be seen of it is not all there is."""


class Foreign:
    """Of another library, for a codec of its own."""


Models = Annotated[Model | Other, pydantic.Field(discriminator="kind")]
Either = Union[Can, Dep]  # noqa: UP007 - the older spelling
Perhaps = Optional[Dep]  # noqa: UP045
CustomerId = NewType("CustomerId", str)
Either_alias = TypeAliasType("Either_alias", Dep | Can)
Can_alias = TypeAliasType("Can_alias", Can)


class Pickle:
    """A codec of the user's own."""

    def bind(self, type: Any, *, topic: str, role: Role = "value") -> Bound[Any]:
        return Bound(encode=lambda value: b"", decode=lambda data: None, content_type="any")


def annotated(says: Any, message: Any = None, returns: Any = None) -> Callable[..., Any]:
    """A handler that is annotated so."""

    def of_value(value: Any) -> Any: ...

    def of_both(value: Any, message: Any) -> Any: ...

    handle: Callable[..., Any] = of_value if message is None else of_both
    handle.__name__ = "handle"
    handle.__annotations__ = {"value": says, "message": message, "return": returns or Any}
    return handle


def declare(
    type: Any,
    says: Any,
    message: Any = None,
    returns: Any = None,
    *,
    to: Any = None,
    **options: Any,
) -> None:
    """Declare a handler on a topic of this type.

    :raises ConfigError: they do not fit together.
    """
    app = Streams("memory://")
    if to is not None:
        options["to"] = app.topic("out", to)
    topic = app.topic("t", type, codec=Pickle() if type is Foreign else None)
    app.processor(topic, group="g", **options)(annotated(says, message, returns))


FITS: list[tuple[Any, Any]] = [
    # What is the same, and what is wider.
    (Dep, Dep), (Dep | Can, Dep | Can), (Dep | Can, Either), (Dep, Dep | Can),
    (Late, Dep), (Late, msgspec.Struct), (Dep, object), (Late | Dep, Dep), (Dep, Perhaps),
    (Dep | None, Dep | None), (Order, Order), (Item, Item), (Point, Point), (Point, tuple),
    (Point, tuple[int, int]), (Colour, Colour), (Colour, Enum), (Model, Model), (Models, Models),
    (Models, Model | Other), (Models, pydantic.BaseModel), (int, int), (bool, int),
    (datetime, datetime), (datetime, date), (bytes, bytes), (Foreign, Foreign), (str, str),
    # What type checkers take for another.
    (int, float), (int, complex), (float, complex), (bytearray, bytes),
    # Generics: the class alone is compared.
    (dict[str, int], dict[str, int]), (dict[str, int], dict), (dict, dict[str, int]),
    (dict[str, int], Mapping[str, int]), (dict[str, int], dict[int, str]), (list[int], list[str]),
    (list[int], Sequence[int]), (list[int], Iterable[int]), (Envelope[int], Envelope[int]),
    (Envelope[int], Envelope[str]), (Envelope[int], Envelope),
    # Codecs make a list of a Sequence, and a dict of a Mapping.
    (Sequence[int], list[int]), (Mapping[str, int], dict[str, int]),
    # A dict may be a TypedDict, and one of these another one.
    (dict[str, Any], Item), (Item, dict[str, Any]), (Item, dict), (Item, Mapping[str, object]),
    (Item, Named), (Item, Maybe), (Item, Priced),
    # Names for types, and wrapping.
    (Annotated[Dep, "x"], Dep), (Dep, Annotated[Dep, "x"]), (Dep, Annotated[Dep | Can, "x"]),
    (CustomerId, str), (str, CustomerId), (Dep, Either_alias),
    (Literal["a", "b"], str), (Literal["a"], Literal["a", "b"]), (str, Literal["a"]),
    # Nothing is known of these.
    (Any, Dep), (object, Dep), (Dep, Any), (Dep, T), (Dep, Bounded), (Dep, "Missing"),
    (Dep, "Dep | Missing"), (Dep, HasN),
    (Dep, Loose), (Dep, Dep | Loose),
    (Dep, "Dep"), (Dep, "Dep | Can"),
]  # fmt: skip

FITS_NOT: list[tuple[Any, Any, str, str]] = [
    (Dep, Can, "Can", "Dep"),
    (Dep, "Can", "Can", "Dep"),
    (Dep, str, "str", "Dep"),
    (Dep | Can, Dep, "Dep", "Dep | Can"),
    (Dep | None, Dep, "Dep", "Dep | None"),
    (Dep, Late, "Late", "Dep"),
    (Dep, Can | Late, "Can | Late", "Dep"),
    (Dep, Can | None, "Can | None", "Dep"),
    (Dep, None, "None", "Dep"),
    (Order, Refund, "Refund", "Order"),
    (Order, dict[str, str], "dict[str, str]", "Order"),
    (Order, Item, "Item", "Order"),
    (Item, Order, "Order", "Item"),
    (Named, Priced, "Priced", "Named"),
    (Model, Other, "Other", "Model"),
    (Models, Model, "Model", "Model | Other"),
    (Annotated[Dep, "x"], Annotated[Can, "y"], "Can", "Dep"),
    (Dep, Can_alias, "Can", "Dep"),
    (CustomerId, int, "int", "CustomerId"),
    (Literal["a"], int, "int", "Literal['a']"),
    (dict[str, int], list[int], "list[int]", "dict[str, int]"),
    (list[int], dict[str, int], "dict[str, int]", "list[int]"),
    (Envelope[int], Dep, "Dep", "Envelope[int]"),
    (int, str, "str", "int"),
    (float, int, "int", "float"),
    (str, bytes, "bytes", "str"),
    (date, datetime, "datetime", "date"),
    (Colour, str, "str", "Colour"),
    (bytes, Dep, "Dep", "bytes"),
    (Foreign, Dep, "Dep", "Foreign"),
    (Dep, Callable[..., Any], "Callable[..., Any]", "Dep"),
    (Dep, type[Dep], "type[Dep]", "Dep"),
]


INSTEAD = ", or give the type: app.topic('t', ...)"
"""A topic has bytes where its type was left out, too."""


@pytest.mark.parametrize(("type", "says"), FITS, ids=repr)
def test_what_fits_or_may_fit_is_taken(type: Any, says: Any) -> None:
    declare(type, says)
    declare(type, says, Message[says])
    declare(type, list[says], batch=5)
    declare(type, Sequence[says], list[Message[says]], batch=5)


@pytest.mark.parametrize(("type", "says", "shown", "has"), FITS_NOT, ids=repr)
def test_what_is_another_type_is_refused(type: Any, says: Any, shown: str, has: str) -> None:
    with pytest.raises(ConfigError) as caught:
        declare(type, says)
    assert str(caught.value) == (
        f"processor handle: parameter 'value' is annotated {shown}, but topic 't' has {has}; "
        f"annotate it {has}{INSTEAD if type is bytes else ''}"
    )
    with pytest.raises(ConfigError, match="parameter 'message' is annotated "):
        declare(type, Any, Message[says])
    with pytest.raises(ConfigError, match="parameter 'value' is annotated "):
        declare(type, list[says], batch=5)
    with pytest.raises(ConfigError, match="parameter 'message' is annotated "):
        declare(type, Any, list[Message[says]], batch=5)


@pytest.mark.parametrize(
    "says",
    [
        list, list[Dep], list[Any], list[Dep | Can], list[Dep] | list[Can], Sequence, Sequence[Dep],
        Iterable[Dep], MutableSequence[Dep], Any, object, T, "list[Missing]", list[Dep] | None,
        Annotated[list[Dep], 1], "list[Dep]",
    ],
    ids=repr,
)  # fmt: skip
def test_what_a_batch_handler_may_say(says: Any) -> None:
    declare(Dep, says, batch=5)


@pytest.mark.parametrize(
    "says",
    [
        Message, Message[Dep], Message[Any], Message[Dep | Can], Any, object, T,
        Message[Dep, Transaction], Optional[Message[Dep]],  # noqa: UP045
        "Message[Dep]", "Message[Missing]", Annotated[Message[Dep], 1],
    ],
    ids=repr,
)  # fmt: skip
def test_what_the_message_may_be(says: Any) -> None:
    declare(Dep, Dep, says)
    declare(Dep, list[Dep], list[says], batch=5)


@pytest.mark.parametrize(
    ("says", "message", "batch", "said"),
    [
        (Dep, None, 5, "value is annotated Dep, but it gets a list (batch=), and : list[Dep]"),
        (list[Dep], None, None, "value is annotated list[Dep], but : Dep, or give batch="),
        (Dep, str, None, "message is annotated str, but it gets the message, and : Message[Dep]"),
        (Dep, Message[Can], None, "message is annotated Message[Can], but : Message[Dep]"),
        (
            *(list[Dep], Message[Dep], 5),
            "message is annotated Message[Dep], but it gets the messages, and : list[Message[Dep]]",
        ),
        (
            *(list[Dep], list[Dep], 5),
            "message is annotated list[Dep], but it gets the messages, and : list[Message[Dep]]",
        ),
    ],
    ids=str,
)
def test_what_is_said_of_lists_and_messages(
    says: Any, message: Any, batch: int | None, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        declare(Dep, says, message, batch=batch)
    name, _, rest = said.partition(" ")
    rest = rest.replace(" : ", " topic 't' has Dep; annotate it ")
    assert str(caught.value) == f"processor handle: parameter {name!r} {rest}"


@pytest.mark.parametrize("says", ["no type at all", "1 / 0", 7, "...", b"Dep"])
def test_what_is_no_type_is_left_alone(says: Any) -> None:
    declare(Dep, says)


def test_of_several_topics_each_must_fit() -> None:
    app = Streams("memory://")
    deps, cans, anything = app.topic("deps", Dep), app.topic("cans", Can), app.topic("any", Any)

    @app.processor(deps, cans, anything, group="a")
    async def both(event: Dep | Can) -> None: ...

    said = (
        "processor one: parameter 'event' is annotated Dep, but topic 'deps' has Dep and topic "
        "'cans' has Can; annotate it Dep | Can"
    )
    with pytest.raises(ConfigError, match=re.escape(said)):

        @app.processor(deps, cans, group="b")  # type: ignore[arg-type]
        async def one(event: Dep) -> None: ...


def test_a_filter_may_leave_a_part_of_the_type() -> None:
    def departed(event: Any) -> bool:
        return isinstance(event, Dep)

    declare(Dep | Can, Dep, Message[Dep], filter=departed)
    declare(Dep | Can, list[Dep], filter=departed, batch=3)
    with pytest.raises(ConfigError, match="is annotated str, but topic 't' has Dep"):
        declare(Dep | Can, str, filter=departed)


def test_what_takes_a_value_is_compared_as_well() -> None:
    app = Streams("memory://")
    deps = app.topic("deps", Dep)

    def of_cans(event: Can) -> bool:
        return True

    def of_both(event: Dep | Can) -> bool:
        return True

    def of_two(event: Dep, more: int) -> str:
        return ""

    wrong: dict[str, Any] = {"f": of_cans, "two": of_two}
    where = f"{of_cans.__qualname__}: parameter 'event' is annotated Can, but topic"
    with pytest.raises(ConfigError) as caught:
        app.processor(deps, group="g", filter=wrong["f"])(annotated(Dep))
    assert str(caught.value) == (
        f"processor handle: filter {where} 'deps' has Dep; annotate it Dep"
    )
    for option in ("key", "id"):
        with pytest.raises(ConfigError) as caught:
            app.topic("t", Dep, **{option: wrong["f"]})
        assert str(caught.value) == (f"topic 't': {option}={where} 't' has Dep; annotate it Dep")
    for declare_so in (
        lambda: app.topic("t", Dep, key=wrong["two"]),
        lambda: app.processor(deps, group="g", filter=wrong["two"])(annotated(Dep)),
    ):
        with pytest.raises(ConfigError, match="missing a required argument: 'more'; it is called "):
            declare_so()
    app.processor(deps, group="g", filter=of_both)(annotated(Dep))
    app.topic("t", str, key=len)
    # A tombstone is asked for no key, but a filter sees it.
    app.topic("t", Dep | None, key=annotated(Dep), id=annotated(Dep))
    with pytest.raises(ConfigError, match="is annotated Dep, but topic 't' has Dep "):
        declare(Dep | None, Dep | None, filter=annotated(Dep))
    app.topic("t", Dep, key=lambda event: str(event.n))


@pytest.mark.parametrize(
    ("to", "returns"),
    [
        (Can, Can), (Can, Can | None), (Can, None), (Can, list[Can]), (Can, tuple[Can, ...]),
        (Can, tuple[Dep, Can]), (Can, Iterator[Can]), (Can, Generator[Can, Dep, Dep]),
        (Can, Sequence[Can]), (Can, Iterable[Can]), (Can, list[Can] | None), (Can, list),
        (Can, Any), (Can, object), (Can, T), (Can, "Missing"), (Can, Dep | Can),
        (Can, msgspec.Struct), (Dep, Late), (Late, Dep), (Dep | Can, list[Dep]), (Any, Dep),
        (list[int], list[int]), (list[int], tuple[int, ...]), (list[int], list[list[int]]),
        (Item, dict[str, Any]), (dict[str, Any], Item), (Item, Item), (float, int),
        (str, CustomerId), (Can, Coroutine[Any, Any, Can]),
        (Models, Model), (Foreign, Foreign), (str, list[str]),
    ],
    ids=repr,
)  # fmt: skip
def test_what_a_handler_may_return(to: Any, returns: Any) -> None:
    codec_of = Pickle() if to is Foreign else None
    app = Streams("memory://")
    out = app.topic("out", to, codec=codec_of)
    app.processor(app.topic("t", Dep), group="g", to=out)(annotated(Dep, returns=returns))
    held: Any = list[returns]  # pyright: ignore[reportInvalidTypeArguments]
    app.processor(app.topic("t", Dep), group="h", to=out, batch=2)(
        annotated(list[Dep], returns=held)
    )


@pytest.mark.parametrize(
    ("to", "returns", "shown", "has"),
    [
        (Can, Dep, "Dep", "Can"),
        (Can, Dep | None, "Dep | None", "Can"),
        (Can, list[Dep], "list[Dep]", "Can"),
        (Can, Iterator[Dep], "Iterator[Dep]", "Can"),
        (Can, dict[str, Can], "dict[str, Can]", "Can"),
        (Can, str, "str", "Can"),
        (str, int, "int", "str"),
        (Models, Order, "Order", "Model | Other"),
    ],
    ids=repr,
)
def test_what_a_handler_cannot_return(to: Any, returns: Any, shown: str, has: str) -> None:
    with pytest.raises(ConfigError) as caught:
        declare(Dep, Dep, None, returns, to=to)
    assert str(caught.value) == (
        f"processor handle: what it returns is annotated {shown}, but is published to topic 'out' "
        f"(to=), which has {has}; return {has} or None"
    )


@pytest.mark.parametrize("returns", [Can, str, dict[str, Can], list[Dep]], ids=repr)
def test_what_a_batch_handler_cannot_return(returns: Any) -> None:
    with pytest.raises(ConfigError, match="return a list with Can or None for each message"):
        declare(Dep, list[Dep], None, returns, to=Can, batch=2)


def test_without_to_a_handler_returns_what_it_likes() -> None:
    declare(Dep, Dep, None, str)


async def test_annotations_are_found_wherever_the_function_is() -> None:
    app = Streams("memory://")
    deps = app.topic("deps", Dep)

    class Service:
        def handle(self, event: Can) -> None: ...

        async def __call__(self, event: Can) -> None: ...

        @staticmethod
        def static(event: Can) -> None: ...

        @classmethod
        def of_class(cls, event: Can) -> None: ...

    def before(db: int, event: Can) -> None: ...

    def after(event: Can, *, db: int) -> None: ...

    def variadic(*events: Can) -> None: ...

    service = Service()
    wrong: list[Any] = [
        service.handle, service, service.static, Service.static, Service.of_class,
        staticmethod(Service.static), functools.partial(before, 1), functools.partial(after, db=1),
        functools.partial(functools.partial(before), 1), variadic,
    ]  # fmt: skip
    for handler in wrong:
        with pytest.raises(ConfigError, match="is annotated Can, but topic 'deps' has Dep; "):
            app.processor(deps, group="g")(handler)
    async with app.connected():
        with pytest.raises(ConfigError, match=r"^replay into .* is annotated Can, but "):
            await replay(app, deps, wrong[0])
        of_cans = app.declare(wrong[0], ProcessorOptions((app.topic("cans", Can),), "g"))
        with pytest.raises(ConfigError, match=r"^replay into handle: .* is annotated Can, but "):
            await replay(app, deps, of_cans)


def test_what_may_get_something_else_is_left_alone() -> None:
    app = Streams("memory://")
    deps = app.topic("deps", Dep)

    def converting(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        @functools.wraps(function)
        def convert(value: Any) -> Any:
            return function(str(value))

        return convert

    @converting
    def handle(event: str) -> None: ...

    def optional(event: Dep, more: str = "", *, db: str = "") -> None: ...

    app.processor(deps, group="a")(handle)
    app.processor(deps, group="b")(optional)
    app.processor(deps, group="c")(print)
    app.processor(deps, group="d")(list[Any]().append)
    # A codec of the user's own makes what it likes of a topic whose type was left out.
    own = app.topic("own", codec=Pickle())
    app.processor(own, group="e")(annotated(Dep))
    app.topic("own", codec=Pickle(), key=annotated(Dep))
    with pytest.raises(ConfigError, match="but topic 'json' has bytes"):
        app.processor(app.topic("json", codec=Json()), group="f")(annotated(Dep))


# -- handlers in a class body ---------------------------------------------------------------------


@pytest.mark.parametrize("first", ["self", "cls"])
@pytest.mark.parametrize("rest", ["", ", event", ", event: Dep, message", ", *events"])
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_handler_in_a_class_body_is_refused(first: str, rest: str, kind: str) -> None:
    app = Streams("memory://")
    scope = {"declare": app.processor(app.topic("deps", Dep), group="g"), "Dep": Dep}
    body = f"class Service:\n    @declare\n    {kind} handle({first}{rest}): ..."
    with pytest.raises(ConfigError) as caught:
        exec(body, scope)
    assert str(caught.value) == (
        "processor handle: Service.handle is declared in a class body, where its "
        f"{first!r} would get the value; declare the method of an instance instead, as "
        "app.processor(...)(service.handle), or a @staticmethod"
    )
    assert not app.processors


def test_a_method_that_is_not_bound_is_refused() -> None:
    app = Streams("memory://")
    deps = app.topic("deps", Dep)
    unbound: Any = Service.handle
    with pytest.raises(ConfigError, match=r"Service\.handle is declared in a class body"):
        app.processor(deps, group="g")(unbound)


async def test_a_class_method_is_a_handler_once_there_is_the_class() -> None:
    app, seen = Streams("memory://"), list[int]()
    deps = app.topic("deps", Dep)
    too_early: Any = app.processor(deps, group="g")

    class OfClass:
        @classmethod
        async def handle(cls, event: Dep) -> None:
            seen.append(event.n)

    said = r"OfClass\.handle is a class method, and has no class yet; declare it after the class"
    with pytest.raises(ConfigError, match=said):
        too_early(vars(OfClass)["handle"])
    app.processor(deps, group="g")(OfClass.handle)
    async with harness(app) as h:
        await deps.publish(Dep(1))
        await h.settled()
    assert seen == [1]


class Service:
    def __init__(self) -> None:
        self.seen: list[int] = []

    async def handle(self, event: Dep) -> None:
        self.seen.append(event.n)

    def handle_with_message(self, event: Dep, message: Message[Dep]) -> None:
        self.seen.append(event.n)


async def test_bound_methods_and_static_ones_are_handlers() -> None:
    app, service, seen = Streams("memory://"), Service(), list[int]()
    deps = app.topic("deps", Dep)
    app.processor(deps, group="a")(service.handle)
    app.processor(deps, group="b")(service.handle_with_message)

    class Static:
        @staticmethod
        @app.processor(deps, group="c")
        def below(event: Dep) -> None:
            seen.append(event.n)

        @app.processor(deps, group="d")
        @staticmethod
        def above(event: Dep) -> None:
            seen.append(event.n)

    async with harness(app) as h:
        await deps.publish(Dep(1))
        await h.settled()
    assert service.seen == [1, 1]
    assert seen == [1, 1]
    Static.below(Dep(2))
    Static.above(Dep(3))
    Static().above(Dep(4))
    assert seen == [1, 1, 2, 3, 4]


async def test_what_is_declared_twice_is_one_handler() -> None:
    app, seen = Streams("memory://"), list[int]()
    deps, lates = app.topic("deps", Dep), app.topic("lates", Late)

    @app.processor(lates, group="b")
    @app.processor(deps, group="a")
    async def handle(event: Dep) -> None:
        seen.append(event.n)

    async with harness(app) as h:
        await deps.publish(Dep(1))
        await lates.publish(Late(2))
        await h.settled()
    await handle(Dep(3))
    assert sorted(seen) == [1, 2, 3]
    assert [each.name for each in app.processors] == ["handle", "handle-2"]


async def test_a_message_of_two_types_is_one_class() -> None:
    """Defaults of type variables on every supported Python."""
    app, rows = Streams("memory://"), list[object]()
    deps = app.topic("deps", Dep)
    assert get_origin(Message[Dep]) is Message
    assert Message[Dep, Transaction](Dep(1)).value == Dep(1)

    @app.processor(deps, group="g")
    async def handle(event: Dep, message: Message[Dep, Transaction]) -> None:
        rows.append(message)

    async with harness(app) as h:
        await deps.publish(Dep(1))
        await h.settled()
    assert [type(row) for row in rows] == [Message]


def test_the_processor_is_what_was_declared() -> None:
    app = Streams("memory://")
    topic: Topic[Dep] = app.topic("t", Dep)

    @app.processor(topic, group="g")
    def handle(event: Dep, *, times: int = 2) -> int:
        """Says something."""
        return event.n * times

    processor: Processor[..., Any] = handle
    assert processor.__doc__ == "Says something."
    assert (handle(Dep(2)), handle(event=Dep(2), times=5)) == (4, 10)


class Unpublished(msgspec.Struct):
    """What no topic has."""


def returns(says: Any, *, to: Any = None, **options: Any) -> None:
    """Declare a handler that is annotated to return this, on an app with a topic of enums."""
    app = Streams("memory://")
    app.topic("colours", Colour)
    if to is not None:
        options["to"] = app.topic("out", to)
    app.processor(app.topic("t", int), group="g", **options)(annotated(Any, returns=says))


@pytest.mark.parametrize(
    ("says", "shown"),
    [
        (Dep, "Dep"), (Dep | None, "Dep"), (None | Order, "Order"), (Model, "Model"),
        (Item, "Item"), (Colour, "Colour"), (list[Dep], "list[Dep]"), (Unpublished, "Unpublished"),
        (Sequence[Dep | None], "Sequence[Dep | None]"), (Iterator[Order], "Iterator[Order]"),
        (Envelope[int], "Envelope[int]"), (bool | Dep, "Dep"),
    ],
    ids=str,
)  # fmt: skip
def test_a_value_that_nobody_gets_is_warned_of(
    says: Any, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    returns(says)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        f"processor handle returns {shown}, which is discarded without to="
    )


@pytest.mark.parametrize(
    "says",
    [
        None, type(None), bool, int, str, float, bytes, Any, object, dict[str, int], list[int], T,
        int | None, HasN, datetime, Coroutine[Any, Any, Dep], "Unknown", list, tuple,
        Callable[[], Dep],
    ],
    ids=str,
)  # fmt: skip
def test_nothing_is_warned_of_where_nothing_is_certain(
    says: Any, caplog: pytest.LogCaptureFixture
) -> None:
    returns(says)
    returns(Dep, to=Dep)
    assert caplog.records == []
