"""The shop: an order is placed, shipped out of the stock, and billed.

Each of the three is a transaction of the shop's database. The first and the second publish their
event with it, through the outbox; the second and the third have their effect once for each
message, by the inbox. So at the end as many orders are placed as are shipped and billed.
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.orm import Session, sessionmaker

from streams import Flow, Message, Outbox, SQLAlchemy, Streams, Topic

PRICE = 250
"""The price of each piece, in cents."""

TABLES = (
    "CREATE TABLE IF NOT EXISTS orders (id varchar(40) PRIMARY KEY, article varchar, pieces int)",
    "CREATE TABLE IF NOT EXISTS stock (article varchar(40) PRIMARY KEY, pieces int)",
    "CREATE TABLE IF NOT EXISTS shipments (order_id varchar(40), pieces int)",
    "CREATE TABLE IF NOT EXISTS invoices (order_id varchar(40), cents int)",
)
"""The tables; only the inbox prevents duplicate shipments and invoices."""


class Placed(Struct, frozen=True):
    """An order was placed."""

    id: str
    article: str
    pieces: int


class Shipped(Struct, frozen=True):
    """An order was shipped."""

    id: str
    article: str
    pieces: int


class Shop(NamedTuple):
    """The shop's objects in each of its processes."""

    app: Streams
    placed: Topic[Placed]
    shipped: Topic[Shipped]
    outbox: Outbox
    sessions: sessionmaker[Session]

    def place(self, order: Placed) -> bool:
        """Place an order, and publish that; False: it was placed already."""
        with self.sessions.begin() as session:
            known = session.execute(
                text("SELECT 1 FROM orders WHERE id = :id"), {"id": order.id}
            ).first()
            if known is not None:
                return False
            session.execute(
                text("INSERT INTO orders VALUES (:id, :article, :pieces)"),
                {"id": order.id, "article": order.article, "pieces": order.pieces},
            )
            self.outbox.publish_sync(self.placed, order, connection=session)
        return True


def create(url: str, database: str) -> Shop:
    """The shop on a log and a database."""
    app = Streams(url)
    placed = app.topic("placed", Placed, key="article", partitions=4)
    shipped = app.topic("shipped", Shipped, key="id", partitions=4)
    # A relay that hangs is replaced after two seconds: workers are killed here.
    outbox = Outbox(app, database, lease=2.0)
    engine = open_database(database)
    sessions = sessionmaker(engine)
    own = SQLAlchemy(sessions)

    @app.processor(placed, group="warehouse", concurrency=4, flow=Flow(drain=5), transaction=own)
    def ship(order: Placed, message: Message[Placed, Session]) -> None:
        session = message.transaction
        session.execute(
            text("UPDATE stock SET pieces = pieces - :pieces WHERE article = :article"),
            {"pieces": order.pieces, "article": order.article},
        )
        session.execute(
            text("INSERT INTO shipments VALUES (:id, :pieces)"),
            {"id": order.id, "pieces": order.pieces},
        )
        leaving = Shipped(order.id, order.article, order.pieces)
        outbox.publish_sync(shipped, leaving, connection=session)

    @app.processor(shipped, group="billing", concurrency=4, flow=Flow(drain=5), transaction=own)
    def bill(shipment: Shipped, message: Message[Shipped, Session]) -> None:
        message.transaction.execute(
            text("INSERT INTO invoices VALUES (:id, :cents)"),
            {"id": shipment.id, "cents": shipment.pieces * PRICE},
        )

    return Shop(app, placed, shipped, outbox, sessions)


def open_database(database: str) -> Engine:
    """The shop's database."""
    if not database.startswith("sqlite:"):
        return create_engine(
            database.replace("postgresql:", "postgresql+psycopg:", 1), pool_size=16
        )
    engine = create_engine(database, connect_args={"timeout": 30})

    @event.listens_for(engine, "connect")
    def opened(connection: object, _: object) -> None:
        # Processes are killed here but power is not cut: no commit has to wait for the disk.
        for pragma in ("journal_mode = wal", "synchronous = off"):
            connection.execute(f"PRAGMA {pragma}")  # type: ignore[attr-defined]

    return engine


class Books(NamedTuple):
    """The totals in the database: pieces, and the amount billed for them.

    :param twice: orders that were shipped or billed more than once.
    """

    orders: int
    placed: int
    taken: int
    shipped: int
    billed: int
    twice: int

    @property
    def are_equal(self) -> bool:
        """Whether every order has left the stock once, was shipped and billed."""
        return self.placed == self.taken == self.shipped == self.billed and not self.twice


def books(sessions: sessionmaker[Session], stock: int) -> Books:
    """Compute the totals.

    :param stock: the initial stock in pieces.
    """

    def one(sql: str) -> int:
        return int(session.execute(text(sql)).scalar() or 0)

    with sessions() as session:
        return Books(
            one("SELECT count(*) FROM orders"),
            one("SELECT sum(pieces) FROM orders"),
            stock - one("SELECT sum(pieces) FROM stock"),
            one("SELECT sum(pieces) FROM shipments"),
            one("SELECT sum(cents) FROM invoices") // PRICE,
            sum(
                one(
                    "SELECT count(*) FROM (SELECT 1 FROM "
                    f"{table} GROUP BY order_id HAVING count(*) > 1) AS t"
                )
                for table in ("shipments", "invoices")
            ),
        )
