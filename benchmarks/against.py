"""This commit beside another one: ``python -m benchmarks --against REV``.

The toolkit's side of each case is run alternately with the files of both commits, in the same
environment and against the same servers; hand-written loops and peers are left out. The other
commit's files are taken from git into a temporary folder. Each commit runs the tasks of its own
``benchmarks/``, so the toolkit may rename what the benchmarks use; a case that the other commit
does not know is reported as failed.

The ratio is this commit's figure divided by the other's, turn by turn. Its interval is that of the
median and follows from the ordered ratios and the binomial distribution alone (the sign test's), so
it assumes nothing about how a machine's noise is distributed. An interval of 95 % needs at least
:data:`MIN_TURNS` turns.
"""

from __future__ import annotations

import math
import statistics
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.table import Table

from benchmarks.cases import Case, Metric
from benchmarks.measure import SideRunner, round_figure
from benchmarks.process import ROOT, MeasureError
from benchmarks.report import words
from benchmarks.report.table import styled

MIN_TURNS = 6
"""The fewest turns with an interval of 95 %."""

REPEATS = 9
"""Turns, if not given."""

TOLERANCE = 0.03
"""How far below 1 the whole interval must lie for a case to count as slower (above: quicker)."""

Verdict = Literal["slower", "quicker", "", "failed"]


class UnknownRevision(Exception):
    """Git has no such commit."""


class Comparison(NamedTuple):
    """One figure of one case, of both commits.

    :param ratio: the median of this commit's figure divided by the other's, turn by turn.
    :param interval: of that median, 95 % or a little more.
    :param error: why it was not measured; then there are no figures.
    """

    case: str
    log: str
    unit: str
    better: Literal["more", "less"]
    ratio: float | None
    interval: tuple[float, float] | None
    figure: float | None
    before: float | None
    ratios: tuple[float, ...]
    error: str | None

    @property
    def verdict(self) -> Verdict:
        """Whether the whole interval lies beyond :data:`TOLERANCE`."""
        if self.error is not None or self.interval is None:
            return "failed"
        low, high = self.interval
        if self.better == "less":
            low, high = 1 / high if high else math.inf, 1 / low if low else math.inf
        if high < 1 - TOLERANCE:
            return "slower"
        return "quicker" if low > 1 + TOLERANCE else ""


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Between which two of the ordered ratios the median lies, with a probability of 95 % or more.

    The k-th smallest and the k-th largest of n enclose the median with the probability
    ``1 - 2 * P(Binomial(n, 1/2) < k)`` (see any text on order statistics).

    :raises ValueError: there are fewer than :data:`MIN_TURNS`.
    """
    count = len(ratios)
    if count < MIN_TURNS:
        raise ValueError(f"{count} ratios: at least {MIN_TURNS} are needed")
    outside, rank = 0.0, 0
    while True:
        outside += 2 * math.comb(count, rank) / 2**count
        if outside > 0.05:
            break
        rank += 1
    ordered = sorted(ratios)
    return ordered[rank - 1], ordered[count - rank]


def resolve(revision: str) -> str:
    """The commit that a revision names.

    :raises UnknownRevision: there is none, or this is no git checkout.
    """
    asked = [
        "git",
        "rev-parse",
        "--verify",
        "--quiet",
        "--end-of-options",
        f"{revision}^{{commit}}",
    ]
    try:
        found = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UnknownRevision(f"--against needs git: {error.strerror}") from error
    if found.returncode:
        raise UnknownRevision(f"--against {revision}: git knows no such commit here")
    return found.stdout.strip()


def unpack(commit: str, folder: Path) -> None:
    """Write a commit's files into a folder."""
    with tempfile.TemporaryFile() as archive:
        subprocess.run(
            ["git", "archive", "--format=tar", commit], cwd=ROOT, stdout=archive, check=True
        )
        archive.seek(0)
        with tarfile.open(fileobj=archive) as files:
            if hasattr(tarfile, "data_filter"):  # not before Python 3.11.4
                files.extraction_filter = tarfile.data_filter
            files.extractall(folder)


def pairs(cases: Sequence[Case], before: Sequence[Case]) -> list[tuple[Case, Case]]:
    """This commit's cases, each with the other commit's counterpart, without those whose own side
    another case measures already."""
    found: list[tuple[Case, Case]] = []
    seen: set[tuple[str, str, str]] = set()
    for mine, other in zip(cases, before, strict=True):
        key = (mine.log, mine.ours.task, repr(sorted(mine.ours.arguments.items())))
        if key not in seen:
            seen.add(key)
            found.append((mine, other))
    return found


def compare(
    mine: Case, other: Case, root: Path, repeats: int, report: Callable[[str], None]
) -> list[Comparison]:
    """Run one case with both commits alternately; a row for each of its figures.

    :param root: the folder with the other commit's files.
    """
    metrics = list(dict.fromkeys((rival.metric, rival.suffix) for rival in mine.rivals))
    answers: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    error: str | None = None
    try:
        with ExitStack() as stack:
            runners = (SideRunner({}, stack), SideRunner({}, stack, root))
            sides = (mine.ours, other.ours)
            for runner, side in zip(runners, sides, strict=True):
                report("preparing")
                runner.prepare(side)
            for turn in range(repeats):
                report(f"{turn + 1} of {repeats}")
                for at in (0, 1) if turn % 2 == 0 else (1, 0):
                    answers[at].append(runners[at].run(sides[at]))
    except MeasureError as failure:
        error = str(failure)
    return [_comparison(mine, metric, suffix, answers, error) for metric, suffix in metrics]


def _comparison(
    case: Case,
    metric: Metric,
    suffix: str,
    answers: tuple[list[dict[str, Any]], list[dict[str, Any]]],
    error: str | None,
) -> Comparison:
    empty = Comparison(
        case.name + suffix, case.log, metric.unit, metric.better, None, None, None, None, (), error
    )
    if error is not None:
        return empty
    figures, before = (
        [answer[metric.key] * metric.scale for answer in side if metric.key in answer]
        for side in answers
    )
    if len(figures) != len(before):
        return empty._replace(error=f"only one of the commits tells its {metric.key}")
    ratios = [new / old for new, old in zip(figures, before, strict=True) if old]
    if len(ratios) < MIN_TURNS:
        return empty._replace(error=f"{len(ratios)} turns gave a figure: too few to compare")
    low, high = interval(ratios)
    return empty._replace(
        ratio=round_figure(statistics.median(ratios)),
        interval=(round_figure(low), round_figure(high)),
        figure=round_figure(statistics.median(figures)),
        before=round_figure(statistics.median(before)),
        ratios=tuple(map(round_figure, ratios)),
    )


# -- reports --------------------------------------------------------------------------------------

COLUMNS = ("log", "case", "now", "before", "unit", "ratio", "95 % interval", "better", "")
_LEFT = ("log", "case", "unit", "better", "")


def row_texts(row: Comparison) -> list[str]:
    """One row's texts, in the order of :data:`COLUMNS`."""
    span = (
        words.NO_FIGURE if row.interval is None else "-".join(map(words.short_figure, row.interval))
    )
    ratio = words.NO_FIGURE if row.ratio is None else words.short_figure(row.ratio)
    return [
        row.log, row.case, words.figure(row.figure, row.unit),
        words.figure(row.before, row.unit),
        row.unit, ratio, span, row.better, row.verdict,
    ]  # fmt: skip


def table(rows: Sequence[Comparison], title: str) -> Table:
    """For the terminal; what is slower is yellow, what failed red."""
    styles = {"failed": "red", "slower": "yellow"}
    return styled(
        title, COLUMNS, _LEFT, ((row_texts(row), styles.get(row.verdict)) for row in rows)
    )


def markdown(rows: Sequence[Comparison]) -> str:
    """A Markdown table."""
    return words.markdown(
        [column or "verdict" for column in COLUMNS], (*_LEFT, "verdict"), map(row_texts, rows)
    )


def summary(rows: Sequence[Comparison]) -> str:
    """One line that counts the verdicts."""
    counts = {name: sum(row.verdict == name for row in rows) for name in ("slower", "quicker")}
    failed = sum(row.verdict == "failed" for row in rows)
    return (
        f"{len(rows)} figures: {counts['slower']} slower and {counts['quicker']} quicker by more "
        f"than {TOLERANCE:.0%} (whole interval), {failed} failed"
    )
