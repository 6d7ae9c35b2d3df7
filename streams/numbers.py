"""Whether what somebody has given is a number of the kind that is needed. True and False are none,
though Python has them for 1 and 0."""

from __future__ import annotations

from typing import TypeGuard


def is_int(value: object, minimum: int, maximum: int | None = None) -> TypeGuard[int]:
    """Whether it is a whole number from ``minimum``, and up to ``maximum`` where there is one."""
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return value >= minimum and (maximum is None or value <= maximum)


def is_seconds(value: object, *, positive: bool = True) -> bool:
    """Whether it is a number of seconds: more than 0, or not negative."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return value > 0 or (value == 0 and not positive)
