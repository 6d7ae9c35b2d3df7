"""What is common to all SQL that users hand over: handlers' statements and queries."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import apsw

from streams.errors import ConfigError

_BLANK_SQL = re.compile(r"(\s|;|--[^\n]*|/\*.*?(\*/|\Z))*", re.DOTALL)

READ_PRAGMAS = frozenset(
    (
        *("foreign_key_check", "foreign_key_list", "index_info", "index_list", "index_xinfo"),
        *("table_info", "table_list", "table_xinfo"),
    )
)
"""Pragmas that only read the schema."""


def single_statement(sql: str, caller: str) -> Callable[[apsw.Cursor, str, Any], bool]:
    """A cursor's tracer that refuses to run more than one statement.

    :raises ConfigError: when it is called, if there are several in ``sql``.
    """

    def trace(_: apsw.Cursor, statement: str, __: Any) -> bool:
        if _BLANK_SQL.fullmatch(statement):
            return True
        statement = statement.strip()
        if not _BLANK_SQL.fullmatch(sql, sql.find(statement) + len(statement)):
            raise ConfigError(f"{caller}: one statement at a time, not several")
        return True

    return trace
