"""Stock, bank and carrier, as external services.

They share one SQLite file here and know nothing of sagas or streams. They act once for each
*idempotency key*: a second call with the same key gets the same answer, also if that was a refusal.
A saga needs nothing more of a service to have its effects once.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL, refusal TEXT);
CREATE TABLE IF NOT EXISTS stock (sku TEXT PRIMARY KEY, pieces INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS accounts (customer TEXT PRIMARY KEY, cents INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS parcels (number TEXT PRIMARY KEY, customer TEXT, sku TEXT);
"""


class Refused(Exception):
    """A service refuses, and will refuse each time."""


class OutOfStock(Refused):
    """The article is out of stock."""


class Declined(Refused):
    """The customer has too little money."""


class Undeliverable(Refused):
    """No carrier delivers to the customer."""


REFUSALS = {each.__name__: each for each in (OutOfStock, Declined, Undeliverable)}


class Services:
    """All three services, on one file. Calls block, and may be made from any thread and process."""

    def __init__(self, path: str) -> None:
        self._path = path
        Path(path).touch(mode=0o600)  # only its owner may read a new file
        with self._open() as file:
            file.executescript(f"PRAGMA journal_mode=WAL; {SCHEMA}")

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, timeout=30, isolation_level=None)) as file:
            yield file

    def _answer_once(self, key: str, act: Callable[[sqlite3.Connection], str]) -> str:
        """Act and store the answer under the key, in one transaction."""
        with self._open() as file:
            file.execute("BEGIN IMMEDIATE")
            try:
                known = file.execute(
                    "SELECT answer, refusal FROM answers WHERE key = ?", (key,)
                ).fetchone()
                if known is None:
                    known = _run_once(act, file)
                    file.execute("INSERT INTO answers VALUES (?, ?, ?)", (key, *known))
            except BaseException:
                file.execute("ROLLBACK")
                raise
            file.execute("COMMIT")
        answer, refusal = known
        if refusal is not None:
            raise REFUSALS[refusal](answer)
        return str(answer)

    # -- the initial state

    def fill(self, sku: str, pieces: int) -> None:
        """Add pieces to the stock."""
        with self._open() as file:
            file.execute(
                "INSERT INTO stock VALUES (?1, ?2) ON CONFLICT DO UPDATE SET pieces = pieces + ?2",
                (sku, pieces),
            )

    def deposit(self, customer: str, cents: int) -> None:
        """Add money to a customer's account."""
        with self._open() as file:
            file.execute(
                "INSERT INTO accounts VALUES (?1, ?2) ON CONFLICT DO UPDATE SET cents = cents + ?2",
                (customer, cents),
            )

    # -- stock

    def reserve(self, key: str, sku: str) -> None:
        """Reserve a piece.

        :raises OutOfStock: there is none.
        """

        def act(file: sqlite3.Connection) -> str:
            taken = file.execute(
                "UPDATE stock SET pieces = pieces - 1 WHERE sku = ? AND pieces > 0", (sku,)
            )
            if taken.rowcount == 0:
                raise OutOfStock(f"no {sku} left")
            return sku

        self._answer_once(key, act)

    def release(self, key: str, sku: str) -> None:
        """Put a piece back."""

        def act(file: sqlite3.Connection) -> str:
            file.execute("UPDATE stock SET pieces = pieces + 1 WHERE sku = ?", (sku,))
            return sku

        self._answer_once(key, act)

    # -- bank

    def charge(self, key: str, customer: str, cents: int) -> str:
        """Take money; returns the receipt.

        :raises Declined: the customer has too little.
        """

        def act(file: sqlite3.Connection) -> str:
            paid = file.execute(
                "UPDATE accounts SET cents = cents - ?1 WHERE customer = ?2 AND cents >= ?1",
                (cents, customer),
            )
            if paid.rowcount == 0:
                raise Declined(f"{customer} cannot pay {cents}")
            return f"receipt {key}"

        return self._answer_once(key, act)

    def refund(self, key: str, customer: str, cents: int) -> None:
        """Give money back."""

        def act(file: sqlite3.Connection) -> str:
            file.execute(
                "UPDATE accounts SET cents = cents + ? WHERE customer = ?", (cents, customer)
            )
            return f"refund {key}"

        self._answer_once(key, act)

    # -- carrier

    def ship(self, key: str, customer: str, sku: str) -> str:
        """Send a parcel; returns its number.

        :raises Undeliverable: no carrier delivers there.
        """

        def act(file: sqlite3.Connection) -> str:
            if customer.startswith("far"):
                raise Undeliverable(f"nobody drives to {customer}")
            count = file.execute("SELECT count(*) FROM parcels").fetchone()[0]
            number = f"P{count + 1:05}"
            file.execute("INSERT INTO parcels VALUES (?, ?, ?)", (number, customer, sku))
            return number

        return self._answer_once(key, act)

    # -- the books

    def pieces(self) -> dict[str, int]:
        """The remaining stock."""
        with self._open() as file:
            return dict(file.execute("SELECT sku, pieces FROM stock"))

    def balances(self) -> dict[str, int]:
        """The customers' balances, in cents."""
        with self._open() as file:
            return dict(file.execute("SELECT customer, cents FROM accounts"))

    def parcels(self) -> dict[str, tuple[str, str]]:
        """Customer and SKU of every parcel, by its number."""
        with self._open() as file:
            return {row[0]: (row[1], row[2]) for row in file.execute("SELECT * FROM parcels")}


def _run_once(
    act: Callable[[sqlite3.Connection], str], file: sqlite3.Connection
) -> tuple[str, str | None]:
    """The answer, and the name of the refusal if it is one; a refusal has changed nothing."""
    try:
        return act(file), None
    except Refused as refused:
        return str(refused), type(refused).__name__
