"""``exactly_once=True``: what cannot work is refused where it is declared."""

from __future__ import annotations

import pytest

from streams import ConfigError, DeadLetters, Flow, Sqlite, Streams


def test_what_cannot_work_is_refused_where_it_is_declared() -> None:
    app = Streams("memory://")
    source, target = app.topic("a", int), app.topic("b", int)
    with pytest.raises(ConfigError, match="without to="):
        app.processor(source, group="g", exactly_once=True)(print)
    with pytest.raises(ConfigError, match="True or False"):
        app.processor(source, group="g", to=target, exactly_once=1)(abs)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="parked"):
        app.processor(
            source, group="g", to=target, exactly_once=True,
            dead_letters=DeadLetters(sequenced=True),
        )(abs)  # fmt: skip
    with pytest.raises(ConfigError, match="cannot share a transaction"):
        app.processor(
            source, group="g", to=target, exactly_once=True, transaction=Sqlite("books.db")
        )(abs)
    cluster = Streams("redis+cluster://localhost:6379")
    source, target = cluster.topic("a", int), cluster.topic("b", int)
    with pytest.raises(ConfigError, match=r"Redis Cluster.*cannot share a transaction"):
        cluster.processor(source, group="g", to=target, exactly_once=True)(abs)


def test_how_often_is_the_users_to_say() -> None:
    assert (Flow().commit, Flow().pipeline_commit) == (1.0, 0.1)
    assert Flow(commit=1.0).pipeline_commit == 1.0
