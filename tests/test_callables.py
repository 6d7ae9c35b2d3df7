"""What is known of a user's function before it is called."""

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from streams import callables


def plain(a: int, b: int = 0) -> int:
    return a + b


async def awaited(a: int) -> int:
    return a


def generator(a: int) -> Iterator[int]:
    yield a


async def async_generator(a: int) -> AsyncIterator[int]:
    yield a


class Plain:
    def __call__(self, a: int) -> int:
        return a


class Awaited:
    async def __call__(self, a: int) -> int:
        return a

    async def method(self, a: int) -> int:
        return a


class Generating:
    def __call__(self, a: int) -> Iterator[int]:
        yield a


KINDS: list[tuple[Any, str]] = [
    (plain, "plain"),
    (lambda a: a, "plain"),
    (print, "plain"),
    (Plain(), "plain"),
    (Awaited, "plain"),  # a call makes an object
    (functools.partial(plain, 1), "plain"),
    (awaited, "async"),
    (Awaited(), "async"),
    (Awaited().method, "async"),
    (functools.partial(awaited, 1), "async"),
    (functools.partial(functools.partial(Awaited()), 1), "async"),
    (generator, "generator"),
    (Generating(), "generator"),
    (functools.partial(Generating(), 1), "generator"),
    (async_generator, "async generator"),
    (functools.partial(async_generator, 1), "async generator"),
]


@pytest.mark.parametrize(("function", "kind"), KINDS)
def test_what_a_call_of_it_is(function: Any, kind: str) -> None:
    assert callables.is_plain(function) == (kind == "plain")
    assert callables.is_async(function) == (kind == "async")
    assert callables.is_generator(function) == kind.endswith("generator")
    assert callables.is_async_generator(function) == (kind == "async generator")


def of_one_or_two(a: int, b: int = 0, /, *, c: int = 0) -> None: ...
def of_any(*rest: int, **named: int) -> None: ...
def of_two_and_more(a: int, b: int, *rest: int) -> None: ...
def of_a_name(a: int, *, name: int) -> None: ...
def of_nothing(**named: int) -> None: ...


@pytest.mark.parametrize(
    ("function", "counts", "keywords"),
    [
        (plain, {1, 2}, ()),
        (Plain(), {1}, ()),
        (Awaited().method, {1}, ()),
        (functools.partial(plain, 1), {0, 1}, ()),
        (of_one_or_two, {1, 2}, ()),
        (of_any, {0, 1, 2, 3}, ()),
        (of_two_and_more, {2, 3}, ()),
        (of_a_name, {1}, ("name",)),
        (of_nothing, {0}, ()),
    ],
)
def test_how_many_arguments_it_takes(
    function: Callable[..., Any], counts: set[int], keywords: tuple[str, ...]
) -> None:
    found = callables.parameters_of(function)
    assert found is not None
    assert {count for count in range(4) if found.can_take(count)} == counts
    assert found.keywords == keywords
    for count in range(4):
        error = callables.call_error(function, *[None] * count)
        assert (error is None) == (count in counts and not keywords)


def test_a_builtin_does_not_tell() -> None:
    assert callables.parameters_of(max) is None
    assert callables.call_error(max, 1, 2, 3) is None


def test_how_it_is_named() -> None:
    bound = functools.partial(plain, 1)
    assert callables.callable_name(plain) == callables.qualified_name(plain) == "plain"
    assert callables.qualified_name(Awaited.method) == "Awaited.method"
    assert callables.callable_name(Awaited.method) == "method"
    assert callables.callable_name(bound) == callables.qualified_name(bound) == "partial"
    assert callables.shown_function(plain) == "plain"
    assert callables.shown_function(bound) == repr(bound)
    assert callables.shown_function(None) == "None"
