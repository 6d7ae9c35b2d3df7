"""Orders over three services: killed midway, the books agree; and the commands of its docstring."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from examples.orders import choreography
from examples.orders.choreography import PLACED, REFUSED, SHIPPED
from examples.orders.demo import audit, orders_of, run
from examples.orders.saga import Order, create
from examples.orders.services import Declined, OutOfStock, Services
from streams.patterns import ChoreographySaga, SagaFailedError
from streams.testing import harness

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("choreographed", [False, True], ids=["orchestrated", "choreographed"])
async def test_workers_are_killed_and_the_books_agree(choreographed: bool, tmp_path: Path) -> None:
    lines: list[str] = []
    outcome = await run(
        f"sqlite:///{tmp_path}/orders.db", f"{tmp_path}/services.db", 40, 3, 1, lines.append,
        choreographed=choreographed,
    )  # fmt: skip
    assert outcome.errors == []
    # Who lives far away, has no money left, or comes when the cups are gone gets nothing; five
    # customers have the money for three orders each.
    assert set(outcome.statuses) == {"completed", "compensated"}
    assert outcome.statuses.total() == 40
    assert outcome.statuses["completed"] <= 15
    assert len([line for line in lines if "was killed" in line]) == 3


async def test_each_failure_is_taken_back(tmp_path: Path) -> None:
    database = str(tmp_path / "services.db")
    app, orders = create("memory://", database)
    services = Services(database)
    services.fill("cup", 2)
    services.deposit("ada", 5000)
    services.deposit("far-fay", 5000)
    services.deposit("poor", 1)
    async with harness(app):
        done = await orders.execute(Order("ada", "cup"), id="o1")
        assert services.parcels() == {done.parcel: ("ada", "cup")}
        for customer, sku, step in (
            ("ada", "pot", "reserve"),
            ("poor", "cup", "charge"),
            ("far-fay", "cup", "ship"),
        ):
            with pytest.raises(SagaFailedError) as caught:
                await orders.execute(Order(customer, sku), id=f"{customer}-{sku}")
            assert (caught.value.step, caught.value.failed_compensations) == (step, ())
    assert services.pieces() == {"cup": 1}
    assert services.balances() == {"ada": 3800, "far-fay": 5000, "poor": 1}
    assert len(services.parcels()) == 1


async def test_each_failure_is_answered_by_who_hears_it(tmp_path: Path) -> None:
    database = str(tmp_path / "services.db")
    app, bus = choreography.create("memory://", database)
    services = Services(database)
    services.fill("cup", 3)
    services.deposit("ada", 5000)
    services.deposit("far-fay", 5000)
    services.deposit("poor", 1)
    said: dict[str, list[str]] = {}
    shipped: list[Order] = []
    async with harness(app) as h:
        for customer, sku in (("ada", "cup"), ("ada", "pot"), ("poor", "cup"), ("far-fay", "cup")):
            saga = ChoreographySaga(bus, f"{customer}-{sku}")
            await saga.start(PLACED, Order(customer, sku))
        await h.settled()
        async for event in bus.read():
            said.setdefault(event.correlation_id or "", []).append(event.topic)
            if event.topic == SHIPPED:
                shipped.append(event.data)
    unpaid = ["order.unpaid", REFUSED]
    assert said == {
        "ada-cup": [PLACED, "stock.reserved", "order.paid", SHIPPED],
        "ada-pot": [PLACED, REFUSED],
        "poor-cup": [PLACED, "stock.reserved", *unpaid],
        "far-fay-cup": [PLACED, "stock.reserved", "order.paid", "order.undeliverable", *unpaid],
    }
    assert [order.parcel for order in shipped] == list(services.parcels())
    assert services.pieces() == {"cup": 2}
    assert services.balances() == {"ada": 3800, "far-fay": 5000, "poor": 1}


def test_a_service_does_a_thing_once_for_a_key(tmp_path: Path) -> None:
    services = Services(str(tmp_path / "services.db"))
    services.fill("cup", 1)
    services.deposit("ada", 100)
    services.reserve("k1", "cup")
    services.reserve("k1", "cup")
    with pytest.raises(OutOfStock):
        services.reserve("k2", "cup")
    assert services.charge("k3", "ada", 60) == services.charge("k3", "ada", 60)
    with pytest.raises(Declined):
        services.charge("k4", "ada", 60)
    assert services.ship("k5", "ada", "cup") == services.ship("k5", "ada", "cup") == "P00001"
    services.refund("k6", "ada", 60)
    services.refund("k6", "ada", 60)
    services.release("k7", "cup")
    services.release("k7", "cup")
    with pytest.raises(OutOfStock):  # there is one now, but it has said no under this key
        services.reserve("k2", "cup")
    assert (services.pieces(), services.balances()) == ({"cup": 1}, {"ada": 100})


def test_books_that_do_not_agree_are_found(tmp_path: Path) -> None:
    services = Services(str(tmp_path / "services.db"))
    services.fill("cup", 19)
    services.deposit("ada", 1)
    services.ship("k", "ada", "cup")
    assert audit({"o1": Order("ada", "cup")}, [], services) == [
        "o1 was lost",
        "1 parcels were sent for 0 orders",
        "cup: 19 left of 20, and 0 sent",
        "ada: 1 left of 3600, and 0 to pay",
    ]
    assert len({order.customer for order in orders_of(12).values()}) == 6


@pytest.mark.parametrize("options", [(), ("--choreographed",)], ids=["asked", "heard"])
def test_the_commands_of_its_docstring(options: tuple[str, ...], tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "STREAMS_URL": "sqlite:///orders.db",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "codecs")]),
    }

    def command(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", *words], cwd=tmp_path, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    services = Services(str(tmp_path / "services.db"))
    services.fill("cup", 5)
    services.deposit("ada", 1200)
    worker = command("examples.orders", "work", *options)
    try:
        ordered = command("examples.orders", "order", "ada", "cup", *options)
        out, err = ordered.communicate(timeout=60)
        assert (out[:22], err) == ("ordered: parcel P00001", "")
        ended = command("examples.orders", *options, "order", "ada", "cup")
        out, _ = ended.communicate(timeout=60)
        assert (ended.returncode, "Declined: ada cannot pay 1200" in out) == (1, True)
        worker.send_signal(signal.SIGINT)
        worker.communicate(timeout=60)
        assert worker.returncode == 0
    finally:
        worker.kill()
        worker.communicate()
    if options:  # nobody keeps a list
        return
    listed, _ = command("streams.cli", "saga", "list", "orders", "--all").communicate(timeout=60)
    assert [line.split()[2] for line in listed.splitlines()[1:]] == ["completed", "compensated"]
