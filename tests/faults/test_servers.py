"""What happens to servers and to the way there: killed, frozen, cut off, answers lost."""

from __future__ import annotations

from typing import NamedTuple

from streams import Streams
from streams.errors import OutcomeUnknown
from streams.message import Position
from tests.faults.fleet import Fleet
from tests.faults.history import Recorder, Sent, read
from tests.faults.load import Load, answers, stored
from tests.faults.run import Run, wait
from tests.faults.sizes import BOTH, sizes
from tests.servers.lifetime import until


class Outage(NamedTuple):
    times: int
    seconds: float
    messages: int
    rate: float


def begin(run: Run, fleet: Fleet, load: Load) -> None:
    """Two workers, both of which own partitions, and something done."""
    fleet.start()
    fleet.start()
    until(lambda: run.owners() == 2, 60, "both own partitions")
    fleet.until(lambda handled: handled >= 200)
    until(lambda: load.acknowledged >= 400, 60, "publishing goes on")


@sizes(Outage(1, 0.0, 6_000, 1_500), Outage(5, 0.0, 60_000, 1_000))
def test_the_server_is_killed_and_started_again_under_load(run: Run, size: Outage) -> None:
    """Every acknowledged publish is delivered; everybody recovers by themselves."""
    with run.fleet() as fleet, run.load(size.messages, rate=size.rate) as load:
        begin(run, fleet, load)
        for _ in range(size.times):
            run.ground.server.kill()
            run.ground.server.restart()
            more(fleet, load, 500)
        run.judge(fleet, load.finish())


@sizes(Outage(1, 4.0, 5_000, 800), Outage(2, 10.0, 40_000, 800), logs=["redis"])
def test_the_server_stands_still(run: Run, size: Outage) -> None:
    """No false acknowledgement; no entry skipped; one entry an ID on Redis."""
    with run.fleet() as fleet, run.load(size.messages, rate=size.rate) as load:
        begin(run, fleet, load)
        for _ in range(size.times):
            run.ground.server.pause()
            wait(size.seconds)
            run.ground.server.resume()
            more(fleet, load, 300)
        run.judge(fleet, load.finish())


@sizes(Outage(5, 0.3, 6_000, 1_500), Outage(60, 0.5, 60_000, 1_000), logs=["kafka"])
def test_connections_are_cut(run: Run, size: Outage) -> None:
    """The same, with publisher and workers behind a proxy that resets their connections."""
    through = run.ground.through
    with (
        run.fleet(url=through) as fleet,
        run.load(size.messages, rate=size.rate, url=through) as load,
    ):
        begin(run, fleet, load)
        for _ in range(size.times):
            until(run.ground.proxy.cut, 60, "somebody is connected")
            wait(run.random.random() * size.seconds)
        run.judge(fleet, load.finish())


@sizes(Outage(1, 3.0, 5_000, 1_000), Outage(3, 10.0, 40_000, 1_000), logs=["redis"])
def test_nothing_gets_through_for_a_while(run: Run, size: Outage) -> None:
    """Cut off, and new connections too, longer than a session or lease; then slowly again."""
    through = run.ground.through
    with (
        run.fleet(url=through) as fleet,
        run.load(size.messages, rate=size.rate, url=through) as load,
    ):
        begin(run, fleet, load)
        for _ in range(size.times):
            run.ground.proxy.shut()
            wait(size.seconds)
            run.ground.proxy.delay = 0.01
            run.ground.proxy.open()
            more(fleet, load, 200)
            run.ground.proxy.delay = 0.0
        run.judge(fleet, load.finish())


def more(fleet: Fleet, load: Load, messages: int) -> None:
    """So many more are handled, and acknowledged if there are as many left."""
    before = fleet.tail.count()
    fleet.until(lambda handled: handled >= min(before + messages, load.messages))


@sizes(5, 20, long_logs=BOTH)
async def test_a_reply_is_lost_after_the_write(run: Run, size: int) -> None:
    """What was written and not answered is told as such or found again; never written as new."""
    recorder = Recorder(run.folder)
    app = Streams(run.ground.through)
    topic = app.topic(run.topic, bytes)
    acknowledged = 0
    async with app.connected():
        for number in range(size):
            marker = f"mark{number}-{run.group}".encode()
            lost = run.ground.proxy.lose_reply(marker)
            record = topic.record(marker, key=f"k{number % 3}", id=f"m{number}")
            answer = None
            while not isinstance(answer, Position):
                (answer,) = await answers(app, run.topic, [record])
                assert isinstance(answer, (Position, OutcomeUnknown)), answer
            assert lost.is_set(), "the proxy never saw the request"
            recorder.write(Sent(0.0, *answer, f"k{number % 3}", record.id))
            acknowledged += 1
    # The driver's own retries (idempotent on Kafka) and ours (by message ID on Redis) both leave
    # one entry, as all of it was one producer's session.
    ids = sorted(stored(run.log, run.topic).values())
    assert ids == sorted(f"m{number}" for number in range(size))
    with run.fleet() as fleet:
        fleet.start()
        report = run.judge(fleet, acknowledged)
    assert report.redelivered == 0
    assert run.audit(read(run.folder)) == []
