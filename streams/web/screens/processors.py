"""Processors that run in this process: their durations, their messages in flight; pausing them.

A processor runs in as many processes as its app does, and each knows only its own. The progress of
all of them together is shown with the groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.responses import Response

from streams.errors import InvalidValue, NotFound
from streams.web.action_results import ActionDone, Confirmation
from streams.web.figures import SubjectFigures
from streams.web.group_index import LOOK
from streams.web.page import Action, Page, Screen
from streams.web.problem_board import Problem
from streams.web.processor_figures import QUANTILES, bars, quantile, seconds_text
from streams.web.redaction import Shown
from streams.web.translations import mark

if TYPE_CHECKING:
    from streams.health import ProcessorHealth, ProcessorStats
    from streams.processor import Processor

MAX_PROCESSORS = 200
"""The most processors that are shown."""

MAX_PARTITIONS = 200
"""The most partitions of a processor that are shown."""


class ProcessorRow(NamedTuple):
    """A processor in a list.

    :param state: one word, translated.
    :param tone: the tone of that word: ``good``, ``warning``, ``bad``, or empty.
    :param error: the error that ended it.
    """

    name: str
    group: str
    topics: tuple[str, ...]
    subject: str
    figures: SubjectFigures
    state: str
    tone: str
    error: Shown
    latencies: list[str]
    stats: ProcessorStats | None


def list_processors(page: Page) -> Response:
    """The processors that the app declares, and their state in this process."""
    _measure(page)
    processors = list(page.app.processors)[:MAX_PROCESSORS]
    figures = _sample_figures(page, [each.name for each in processors])
    return page.render(
        "processors.html",
        title=page._("Processors"),
        rows=[_row(page, each, figures[each.name]) for each in processors],
        running=page.app.runtime.runs_processors,
        quantiles=[f"p{share * 100:g}" for share in QUANTILES],
    )


def _measure(page: Page) -> None:
    if page.app.runtime.runs_processors:
        page.app.measure()


def _sample_figures(page: Page, names: list[str]) -> dict[str, SubjectFigures]:
    subjects = {name: f"processor:{name}" for name in names}
    page.watch(*subjects.values())
    found = page.sampler.ask(subjects.values(), LOOK)
    return {name: found[subject] for name, subject in subjects.items()}


def _row(page: Page, processor: Processor[..., Any], figures: SubjectFigures) -> ProcessorRow:
    stats, health = processor.stats(), processor.health()
    state, tone = _state(page, processor, health)
    return ProcessorRow(
        processor.name,
        processor.group,
        processor.topics,
        f"processor:{processor.name}",
        figures,
        state,
        tone,
        page.payloads.error("", health.error),
        [
            seconds_text(None if stats is None else quantile(stats.handler_seconds, share))
            for share in QUANTILES
        ],
        stats,
    )


def _state(page: Page, processor: Processor[..., Any], health: ProcessorHealth) -> tuple[str, str]:
    if health.error is not None:
        return page._("died"), "bad"
    if not health.running:
        return page._("does not run here"), ""
    if health.paused:
        return page._("paused"), "warning"
    if not health.reachable:
        return page._("the log does not answer"), "bad"
    if not health.database_reachable:
        return page._("its database does not answer"), "bad"
    if health.contested:
        return page._("partitions are contested"), "warning"
    if health.held_back:
        return page._("messages wait for newer code"), "warning"
    if health.overdue:
        return page._("handlers are overdue"), "warning"
    return page._("runs"), "good"


def show_processor(page: Page) -> Response:
    """One processor."""
    _measure(page)
    processor = _processor(page)
    figures = _sample_figures(page, [processor.name])[processor.name]
    row, stats = _row(page, processor, figures), processor.stats()
    partitions = () if stats is None else stats.progress[:MAX_PARTITIONS]
    return page.render(
        "processor.html",
        title=processor.name,
        row=row,
        stats=stats,
        health=processor.health(),
        concurrency=processor.options.concurrency,
        batch=processor.options.batch,
        paused=processor.paused,
        running=processor.poller is not None and page.app.runtime.runs_processors,
        points=figures.series.points(),
        bars=[] if stats is None else bars(stats.handler_seconds),
        calls=0 if stats is None else stats.handler_seconds.number,
        mean=_mean_text(stats),
        commit_latencies=_commit_latencies(stats),
        quantiles=[f"p{share * 100:g}" for share in QUANTILES],
        seconds_text=seconds_text,
        partitions=[(each, page.log.format_offset(each.position)) for each in partitions],
        helpers=[each.name for each in processor.helpers],
    )


def _mean_text(stats: ProcessorStats | None) -> str:
    number = 0 if stats is None else stats.handler_seconds.number
    return seconds_text(stats.handler_seconds.total / number if stats and number else None)


def _commit_latencies(stats: ProcessorStats | None) -> list[str]:
    return [
        seconds_text(None if stats is None else quantile(stats.commit_seconds, share))
        for share in QUANTILES
    ]


def _processor(page: Page) -> Processor[..., Any]:
    name = page.fields.raw("name")
    found = next((each for each in page.app.processors if each.name == name), None)
    if found is None:
        raise NotFound(page._("The app declares no processor %(name)s.", name=name[:200]))
    return found


# -- pausing


def pause(page: Page) -> ActionDone | Confirmation:
    """Start no further handlers of a processor in this process."""
    processor, back = _running(page)
    if not page.confirmed(1):
        return Confirmation(
            page._("Pause %(name)s in this process?", name=processor.name),
            1,
            page._("Pause it"),
            back,
            (
                page._("Handlers that run are finished; no further one is started here."),
                page._("This process keeps its partitions, so their messages wait."),
                page._("Other processes continue."),
            ),
        )
    processor.pause()
    return ActionDone(
        page._("%(name)s is paused in this process.", name=processor.name),
        back=back,
        subject=f"processor {processor.name}",
    )


def resume(page: Page) -> ActionDone:
    """Resume a paused processor."""
    processor, back = _running(page)
    processor.resume()
    return ActionDone(
        page._("%(name)s has been resumed in this process.", name=processor.name),
        back=back,
        subject=f"processor {processor.name}, resumed",
    )


def _running(page: Page) -> tuple[Processor[..., Any], tuple[str, str]]:
    processor = _processor(page)
    if processor.poller is None or not page.app.runtime.runs_processors:
        raise InvalidValue(page._("%(name)s does not run in this process.", name=processor.name))
    back = page.url("/processors/show", {"name": processor.name}), page._("Back to the processor")
    return processor, back


# -- problems


def problems(page: Page) -> Iterator[Problem]:
    """Processors of this process that died, are cut off, or are paused."""
    if not page.app.runtime.runs_processors:
        return
    for processor in list(page.app.processors):
        if page.app.runtime.is_starting(processor):
            continue
        state, tone = _state(page, processor, processor.health())
        if tone not in ("bad", "warning"):
            continue
        text = page._(
            "The processor %(name)s in this process: %(state)s.", name=processor.name, state=state
        )
        url = page.url("/processors/show", {"name": processor.name})
        yield Problem(0 if tone == "bad" else 2, text, url)


SCREENS = (
    Screen(
        "/processors",
        list_processors,
        mark("Processors"),
        needs_app=lambda app: bool(app.processors),
    ),
    Screen("/processors/show", show_processor),
)

ACTIONS = (
    Action("/processors/pause", pause, "pause"),
    Action("/processors/resume", resume, "pause"),
)

PROBLEMS = (problems,)
