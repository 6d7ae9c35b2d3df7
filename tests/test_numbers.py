"""Which numbers are of the kind that is needed."""

from typing import Any

import pytest

from streams.numbers import is_int, is_seconds


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (1, (True, True, True)),
        (0, (False, True, True)),
        (-1, (False, False, False)),
        (6, (False, False, True)),
        (10**400, (False, False, True)),
        (True, (False, False, False)),
        (1.0, (False, False, False)),
        ("1", (False, False, False)),
        (None, (False, False, False)),
    ],
)
def test_a_whole_number(value: Any, found: tuple[bool, bool, bool]) -> None:
    assert (is_int(value, 1, 5), is_int(value, 0, 5), is_int(value, 0)) == found


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (1, (True, True)),
        (0.5, (True, True)),
        (float("inf"), (True, True)),
        (0, (False, True)),
        (-0.1, (False, False)),
        (float("nan"), (False, False)),
        (True, (False, False)),
        ("1", (False, False)),
        (None, (False, False)),
    ],
)
def test_a_number_of_seconds(value: Any, found: tuple[bool, bool]) -> None:
    assert (is_seconds(value), is_seconds(value, positive=False)) == found
