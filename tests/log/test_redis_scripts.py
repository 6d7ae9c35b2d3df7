"""What the scripts share: arithmetic on entry IDs, which are more than Lua's numbers hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from hypothesis import example, given
from hypothesis import strategies as st

from streams.log.redis.keys import MAX_OFFSET, entry_id
from streams.log.redis.lua import MAX_ARGUMENTS, load_script
from streams.log.redis.producer import CHUNK_RECORDS, MAX_FIELDS
from tests.servers.find import RedisAddress

LAST = (1 << 64) - 1
halves = (
    st.integers(0, LAST)
    | st.integers(0, 20)
    | st.integers(LAST - 20, LAST)
    | st.integers(1, 19).map(lambda digits: 10**digits)
    | st.integers(1, 19).map(lambda digits: 10**digits - 1)
    | st.integers((1 << 53) - 3, (1 << 53) + 3)
)
numbers = st.builds(lambda high, low: high << 64 | low, halves, halves)


@pytest.fixture(scope="module", params=["redis_server", "valkey_server"])
def client(request: pytest.FixtureRequest) -> Iterator[redis.Redis]:
    address: RedisAddress = request.getfixturevalue(request.param)
    with redis.Redis.from_url(address.url) as client:
        yield client


@given(numbers, numbers)
@example(0, MAX_OFFSET)
@example(MAX_OFFSET, MAX_OFFSET)
def test_entry_ids_are_compared_and_stepped_exactly(
    client: redis.Redis, one: int, two: int
) -> None:
    body = b"return { compare(ARGV[1], ARGV[2]), after(ARGV[1]), before(ARGV[1]) }"
    common = load_script("release").text.partition(b"-- Set a lease free")[0]
    found: Any = client.eval(
        (common + body).decode(), 0, entry_id(one).decode(), entry_id(two).decode()
    )
    assert found[0] == (one > two) - (one < two)
    if one < MAX_OFFSET:
        assert found[1] == entry_id(one + 1)
    assert found[2] == entry_id(one - 1)


def test_no_call_has_more_values_than_lua_can_unpack() -> None:
    assert 2 * CHUNK_RECORDS < MAX_ARGUMENTS
    assert 2 * MAX_FIELDS < MAX_ARGUMENTS
    assert MAX_ARGUMENTS < 8_000
