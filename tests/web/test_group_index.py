"""What the dashboard knows of all groups, though not all topics are asked for each time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from streams.log.memory.log import MemoryLog
from streams.log.protocol import Assignment
from streams.log.url import open_log
from streams.web import group_index
from streams.web.group_index import GroupIndex


class Member:
    """A listener that takes what it gets."""

    def assigned(self, assignments: Sequence[Assignment]) -> None:
        """Reads from where the group is."""

    def revoked(self, assignments: Sequence[Assignment]) -> None:
        """Has nothing to commit."""

    lost = revoked


def topics_of(index: GroupIndex) -> tuple[str, ...]:
    return index.look(10.0).known["readers"].topics


def test_a_group_that_begins_another_topic_is_seen_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_index, "FRESH", 0.0)
    log = open_log("memory://")
    assert isinstance(log, MemoryLog)
    for topic in ("orders", "invoices", "mails"):
        log.create_topic(topic, 1)
    log.initialize_offsets("readers", "orders", {0: 0})
    index = GroupIndex(lambda: log)
    assert topics_of(index) == ("orders",)

    # A running member says where it reads.
    log.initialize_offsets("readers", "invoices", {0: 0})
    subscription = log.subscribe("readers", ["invoices"], Member())
    subscription.poll(1, 0.0)
    assert topics_of(index) == ("invoices", "orders")
    subscription.close()

    # Where nobody runs, that is found out a while later, and at once after an action.
    log.initialize_offsets("readers", "mails", {0: 0})
    assert topics_of(index) == ("invoices", "orders")
    index.expire()
    assert topics_of(index) == ("invoices", "mails", "orders")
    index.close()
    log.close()
