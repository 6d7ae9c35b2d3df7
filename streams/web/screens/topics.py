"""Topics: the list, and one topic with its partitions and groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from starlette.responses import JSONResponse, Response

from stream_codecs import type_name
from streams.errors import StreamsError
from streams.inspection.counting import sum_known
from streams.web.addresses import topic_of
from streams.web.group_index import LOOK
from streams.web.page import Page, Screen
from streams.web.paging import paged
from streams.web.retention import retention_text
from streams.web.translations import mark

if TYPE_CHECKING:
    from streams.log.protocol import DurabilityFact

MAX_PARTITIONS = 500
"""The most partitions of a topic that are shown."""


def list_topics(page: Page) -> Response:
    """The topics of the log, by name."""
    groups = page.dashboard.groups.look(LOOK)
    show_all, wanted = page.fields.flag("all"), page.fields.text("q").lower()
    names = [
        name
        for name in groups.topics
        if (show_all or name not in groups.internal) and wanted in name.lower()
    ]
    pages = paged(page, names)
    subjects = [f"topic:{name}" for name in pages.rows]
    figures = page.sampler.ask(subjects, LOOK)
    page.watch(*subjects)
    rows = [
        (name, figures[f"topic:{name}"], [each.name for each in groups.readers(name)])
        for name in pages.rows
    ]
    return page.render(
        "topics.html",
        title=page._("Topics"),
        rows=rows,
        pages=pages,
        total=len(names),
        hidden=len(groups.internal),
        show_all=show_all,
        groups=groups,
    )


class TopicPartitionRow(NamedTuple):
    """A partition of a topic."""

    partition: int
    first: str
    end: str
    messages: int | None


def show_topic(page: Page) -> Response:
    """One topic."""
    topic, log = topic_of(page), page.log
    info = log.describe_topic(topic)
    rows: list[TopicPartitionRow] = []
    for partition in range(min(info.partitions, MAX_PARTITIONS)):
        first, end = log.watermarks(topic, partition)
        messages = log.lag(topic, partition, first)
        rows.append(
            TopicPartitionRow(partition, log.format_offset(first), log.format_offset(end), messages)
        )
    groups = page.dashboard.groups.look(LOOK)
    readers = groups.readers(topic)
    declared = page.app.topics.get(topic)
    subject = f"topic:{topic}"
    figures = page.sampler.ask([subject], LOOK)[subject]
    page.watch(subject, *(f"group:{each.name}" for each in readers))
    return page.render(
        "topic.html",
        title=topic,
        topic=topic,
        info=info,
        retention=retention_text(page, info.retention),
        rows=rows,
        messages=sum_known(each.messages for each in rows),
        readers=readers,
        complete=groups.is_complete,
        type_text="" if declared is None else type_name(declared.type),
        figures=figures,
        subject=subject,
        points=figures.series.points(),
        durability=_durability(page, topic),
    )


def _durability(page: Page, topic: str) -> tuple[DurabilityFact, ...]:
    """The facts that decide whether a message can be lost; none if the log does not say."""
    try:
        return page.log.durability(topic)
    except StreamsError:
        return ()


def series(page: Page) -> Response:
    """The past of a subject in the form of the charts: times and values."""
    points = page.sampler.past(page.fields.raw("subject")).points()
    data = [[when for when, _ in points], [value for _, value in points]]
    return JSONResponse(data, headers={"cache-control": "no-store"})


SCREENS = (
    Screen("/topics", list_topics, mark("Topics")),
    Screen("/topics/{topic}", show_topic),
    Screen("/series", series),
)
