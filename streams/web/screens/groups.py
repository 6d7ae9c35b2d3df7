"""Groups: their members, progress, and the messages that block them; moving and deleting them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from heapq import nlargest
from typing import TYPE_CHECKING, NamedTuple

from starlette.responses import Response

from streams.errors import GroupNotEmpty, InvalidValue, NotFound
from streams.inspection.counting import sum_known
from streams.inspection.groups import GroupPosition, group_positions
from streams.inspection.offset_texts import parse_offsets
from streams.replay.fixed_groups import check_may_delete_group
from streams.replay.offset_reset import Move, apply_reset, plan_reset
from streams.web.action_results import ActionDone, Confirmation
from streams.web.addresses import group_of, topic_of
from streams.web.group_index import LOOK, GroupFacts, lag_grows
from streams.web.page import Action, Page, Screen
from streams.web.paging import paged
from streams.web.problem_board import Problem, UnfinishedCheck
from streams.web.redaction import Shown
from streams.web.rendering import DASH
from streams.web.translations import mark
from streams.wire import parse_int

if TYPE_CHECKING:
    from streams.log.protocol import GroupInfo, Log

PARTITIONS_A_PAGE = 200
"""How many partitions of a group a page shows."""

WATCHED = 150
"""How many samples of a watched group are checked: five minutes of them."""

MAX_ALONE = 50
"""The most groups without members that the overview names; the others are counted."""


def list_groups(page: Page) -> Response:
    """The groups of the log, by name."""
    groups = page.dashboard.groups.look(LOOK)
    show_all, wanted = page.fields.flag("all"), page.fields.text("q").lower()
    own = [name for name in groups.names if groups.is_internal(name)]
    hidden = set() if show_all else set(own)
    names = [name for name in groups.names if name not in hidden and wanted in name.lower()]
    order = page.fields.text("sort")
    if order == "lag":
        known = groups.known
        names.sort(key=lambda name: -(known[name].lag or 0) if name in known else 1)
    pages = paged(page, names)
    subjects = [f"group:{name}" for name in pages.rows]
    figures = page.sampler.ask(subjects, LOOK)
    page.watch(*subjects)
    rows = [(name, figures[f"group:{name}"], groups.known.get(name)) for name in pages.rows]
    return page.render(
        "groups.html",
        title=page._("Groups"),
        rows=rows,
        pages=pages,
        hidden=len(own),
        show_all=show_all,
        order=order,
        groups=groups,
    )


class PositionRow(NamedTuple):
    """A group in one partition, as it is shown.

    :param key: the key of the first unsettled message.
    :param since: the log's time of that message (seconds since the epoch).
    """

    at: GroupPosition
    position: str
    end: str
    oldest: str
    key: Shown | None
    since: float | None


def show_group(page: Page) -> Response:
    """One group."""
    group, log = group_of(page), page.log
    info = log.describe_group(group)
    positions = _positions(log, info)
    rows: list[PositionRow] = []
    for at in positions:
        oldest, key, since, place = at.oldest, None, None, ""
        if oldest is not None:
            key = page.payloads.key(at.topic, oldest.keys[0])
            since = oldest.time(0)
            place = log.format_offset(oldest.offsets[0])
        position = "" if at.position is None else log.format_offset(at.position)
        rows.append(PositionRow(at, position, log.format_offset(at.end), place, key, since))
    rows.sort(key=lambda row: (row.since is None, row.since or 0.0))
    subject = f"group:{group}"
    figures = page.sampler.ask([subject], LOOK)[subject]
    page.watch(subject)
    topics = sorted({at.topic for at in positions})
    return page.render(
        "group.html",
        title=group,
        group=group,
        info=info,
        pages=paged(page, rows, PARTITIONS_A_PAGE),
        lag=sum_known(at.lag for at in positions),
        waiting=[row for row in rows if row.since is not None][:3],
        topics=topics,
        subject=subject,
        figures=figures,
        points=figures.series.points(),
        processors=[each.name for each in page.app.processors if each.group == group],
    )


def _positions(log: Log, info: GroupInfo) -> list[GroupPosition]:
    """A group's positions; a topic that is gone is left out."""
    try:
        return group_positions(log, info)
    except NotFound:
        there = set(log.list_topics())
        kept = {at: held for at, held in info.positions.items() if at[0] in there}
        return group_positions(log, info._replace(positions=kept))


# -- moving a group


def reset(page: Page) -> ActionDone | Confirmation:
    """Move a group in a topic: the same as ``streams reset``, with its dry run first."""
    group, topic, log = group_of(page), topic_of(page), page.log
    force = page.fields.flag("force")
    confirmed = page.fields.text("confirm")
    if confirmed:  # to the positions that were shown, whatever has moved since
        moves = plan_reset(log, group, topic, _targets(page, confirmed), now=page.now)
    else:
        to = parse_offsets(page.fields.text("to"), page._("Where to"), topic)
        partition = page.fields.optional_number("partition")
        moves = plan_reset(log, group, topic, to, partition=partition, now=page.now)
    again = sum_known(move.again for move in moves)
    skipped = sum_known(move.skipped for move in moves)
    back = page.url("/groups/show", {"group": group}), page._("Back to the group")
    # What matters is the group, not the number: a reset to the beginning concerns many messages.
    if not confirmed:
        return _preview(page, group, topic, moves, again, skipped, back, force=force)
    try:
        apply_reset(log, group, topic, moves, now=page.now, force=force)
    except GroupNotEmpty as error:
        raise GroupNotEmpty(
            f"{error}. " + page._("Stop its processors first, or tick the box to move it anyway.")
        ) from error
    return ActionDone(
        page._(
            "%(group)s was moved in %(topic)s. To be handled again: %(again)s; "
            "skipped: %(skipped)s.",
            group=group,
            topic=topic,
            again=_known(page, again),
            skipped=_known(page, skipped),
        ),
        count=len(moves),
        back=back,
        subject=f"group {group} in {topic} to {_plan_text(moves)}",
        changed=(group,),
    )


def _plan_text(moves: list[Move]) -> str:
    """The positions of a plan, as the field of the form that confirms it."""
    return ",".join(f"{move.partition}:{move.after}" for move in moves)


def _targets(page: Page, confirmed: str) -> dict[int, int]:
    """The positions that :func:`_plan_text` wrote.

    :raises InvalidValue: the text is something else.
    """
    found: dict[int, int] = {}
    for part in confirmed.split(","):
        number, _, at = part.partition(":")
        partition, offset = parse_int(number), parse_int(at, 40)
        if partition is None or offset is None:
            raise InvalidValue(page._("Invalid request."))
        found[partition] = offset
    return found


def _known(page: Page, number: int | None) -> str:
    return page._("an unknown number") if number is None else f"{number:,}"


def _preview(
    page: Page,
    group: str,
    topic: str,
    moves: list[Move],
    again: int | None,
    skipped: int | None,
    back: tuple[str, str],
    *,
    force: bool,
) -> ActionDone | Confirmation:
    log = page.log
    rows = [
        (
            str(move.partition),
            DASH if move.before is None else log.format_offset(move.before),
            log.format_offset(move.after),
            move.again,
            move.skipped,
        )
        for move in moves
    ]
    members = len(log.describe_group(group, ()).members)
    warning = ""
    if members and force:
        warning = page.plural(
            "%(number)s member is running: it starts over from there.",
            "%(number)s members are running: they start over from there.",
            members,
        )
    elif members:
        warning = page.plural(
            "%(number)s member is running, so the group is not moved: stop it first, or tick the "
            "box to move it anyway.",
            "%(number)s members are running, so the group is not moved: stop them first, or tick "
            "the box to move it anyway.",
            members,
        )
    return Confirmation(
        title=page._("Move %(group)s in %(topic)s?", group=group, topic=topic),
        count=1,
        confirm=_plan_text(moves),
        button=page._("Move it"),
        back=back,
        facts=(
            page._("to be handled again: %(again)s", again=_known(page, again)),
            page._("to be skipped: %(skipped)s", skipped=_known(page, skipped)),
            page._("Its dedup window begins empty, so what comes again is handled."),
        ),
        columns=(
            page._("partition"),
            page._("from"),
            page._("to"),
            page._("again"),
            page._("skipped"),
        ),
        rows=rows,
        warning=warning,
    )


def delete(page: Page) -> ActionDone | Confirmation:
    """Delete a group and its positions."""
    group, log = group_of(page), page.log
    positions = len(log.describe_group(group).positions)
    check_may_delete_group(log, group)
    if page.fields.raw("confirm") != group:
        return Confirmation(
            title=page._("Delete the group %(group)s?", group=group),
            count=1,
            confirm=group,
            button=page._("Delete it"),
            back=(page.url("/groups/show", {"group": group}), page._("Back to the group")),
            facts=(
                page.plural(
                    "%(number)s position is deleted with it.",
                    "%(number)s positions are deleted with it.",
                    positions,
                ),
                page._("If its processors start again, they begin like a new group."),
            ),
        )
    log.delete_group(group)
    return ActionDone(
        page._("The group %(group)s was deleted.", group=group),
        count=positions,
        back=(page.url("/groups"), page._("Groups")),
        subject=f"group {group}",
        changed=(group,),
    )


# -- problems


def problems(page: Page) -> Iterator[Problem | UnfinishedCheck]:
    """Groups without members, and lags that grow."""
    groups = page.dashboard.groups.look(2 * LOOK)
    if not groups.is_complete:
        yield UnfinishedCheck(
            page._(
                "%(known)s of %(all)s groups checked so far; each visit checks more.",
                known=f"{len(groups.known):,}",
                all=f"{len(groups.names):,}",
            )
        )
    waiting = [
        facts
        for facts in groups.known.values()
        if facts.lag and not facts.error and not groups.is_internal(facts.name)
    ]
    for facts in waiting:
        if facts.members != 0 and _grows(page, facts):
            text = page._(
                "The lag of %(group)s grows: %(lag)s messages wait.",
                group=facts.name,
                lag=f"{facts.lag:,}",
            )
            yield Problem(1, text, page.url("/groups/show", {"group": facts.name}))
    alone = [facts for facts in waiting if facts.members == 0]
    for facts in nlargest(MAX_ALONE, alone, key=lambda facts: facts.lag or 0):
        text = page._(
            "No consumer is running for %(group)s: %(lag)s messages are waiting.",
            group=facts.name,
            lag=f"{facts.lag:,}",
        )
        yield Problem(1, text, page.url("/groups/show", {"group": facts.name}))
    if (more := len(alone) - MAX_ALONE) > 0:
        text = page.plural(
            "%(number)s more group has no running consumer.",
            "%(number)s more groups have no running consumer.",
            more,
        )
        yield Problem(1, text, page.url("/groups", {"sort": "lag"}))


def _grows(page: Page, facts: GroupFacts) -> bool:
    """Whether the lag grew within the last minutes: in the rounds through all groups, or in the
    samples while a visitor watches this one."""
    now = time.time()
    return lag_grows(facts.lags, now) or lag_grows(
        page.sampler.past(f"group:{facts.name}").points(WATCHED), now
    )


SCREENS = (
    Screen("/groups", list_groups, mark("Groups")),
    Screen("/groups/show", show_group),
)

ACTIONS = (
    Action("/groups/reset", reset, "reset"),
    Action("/groups/delete", delete, "delete-group"),
)

PROBLEMS = (problems,)
