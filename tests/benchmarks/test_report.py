"""What is told of a run: table, Markdown, and a page that stands by itself."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from benchmarks.measure import Row
from benchmarks.report import svg, words
from benchmarks.report.page import page
from benchmarks.report.table import markdown, table

QUANTILES = {f"p{percent}": 0.5 + percent / 100 for percent in range(101)} | {"p99.9": 3.0}


def row(**changes: Any) -> Row:
    base: Row = {
        "case": "plain handler",
        "log": "kafka",
        "against": "by hand",
        "unit": "messages/s",
        "better": "more",
        "ratio": 0.9,
        "spread": [0.85, 0.95],
        "figure": 600_000.0,
        "baseline": 700_000.0,
        "target": 0.85,
        "met": True,
        "ratios": [0.85, 0.9, 0.95],
        "error": None,
        "concurrency": None,
        "violations": None,
        "settings": {"ours": {"client": "a=1"}, "baseline": {"client": "<b> & c"}},
        "details": {},
        "machine": {"processor": "<fast> & cheap"},
    }
    return {**base, **changes}  # type: ignore[typeddict-item]  # the keys are those of a row


WAITING = "async handler that waits 5 ms, {} at once"
ROWS = [
    row(),
    row(against="Quix <Streams>", baseline=41_000.0, ratio=14.6, target=4.0),
    row(case=WAITING.format(64), against="the limit", concurrency=64, figure=12e3, baseline=12.8e3),
    row(case=WAITING.format(256), against="the limit", concurrency=256, figure=5e4, baseline=5.1e4),
    row(
        case="latency at 1,000 a second, plain handler, p50", unit="ms", better="less",
        figure=1.0, baseline=1.1, target=1.25,
        details={"ours": {"quantiles": QUANTILES}, "baseline": {"quantiles": QUANTILES}},
    ),
    row(
        case="backlog of 10, plain handler",
        details={"ours": {"memory": [[0.0, 60.0], [0.1, 90.0]]}},
    ),
    row(log="codecs", case="JSON against json, encode", unit="calls/s", against="json, untyped"),
    row(log="redis", error="it <broke>", ratio=None, spread=None, figure=None, met=None),
    row(log="sqlite", met=False, ratio=0.5),
]  # fmt: skip


class Elements(HTMLParser):
    """Which elements there are, whether they nest, and what they would load."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_by_itself() -> None:
    text = page(ROWS)
    found = Elements(text)
    assert found.open == []
    assert not found.names & {"script", "link", "img", "iframe", "object"}
    assert not found.attributes & {"src", "href", "onload"}
    assert "url(" not in text
    assert "@import" not in text
    assert re.findall(r"https?://\S+?\"", text) == ['http://www.w3.org/2000/svg"'] * text.count(
        "<svg"
    )


def test_the_page_has_every_plot_and_every_row() -> None:
    text = page(ROWS)
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    # Throughput of kafka and sqlite (what failed has none), latency, concurrency, memory.
    assert len(drawings) == 5
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    for title in ("Latency", "Throughput against concurrency", "Memory over time", "Codecs"):
        assert f"<h2>{title}</h2>" in text
    assert text.count("<tr>") == len(ROWS) + 1 + 3  # and the table of codecs
    assert "7 of 8 targets met, 1 row failed" in text


def test_the_page_tells_what_a_pattern_costs_in_microseconds() -> None:
    name = "pattern: message queue"
    slower = row(case=name, against="the <bare> processor", figure=50_000.0, baseline=200_000.0)
    same = row(
        case="pattern: event bus, 10,000 patterns", unit="µs/publish", better="less",
        figure=5.8, baseline=5.7,
    )  # fmt: skip
    text = page([*ROWS, slower, same, row(case=name, error="it broke", figure=None)])
    assert Elements(text).open == []
    _, _, section = text.partition("<h2>What the patterns cost</h2>")
    section, _, _ = section.partition("</table>")
    assert section.count("<tr>") == 3  # what failed has no cost
    for cells in (("20", "5", "+15"), ("5.8", "5.7", "+0.1")):
        assert "".join(f'<td class="n">{cell}</td>' for cell in cells) in section
    assert "the &lt;bare&gt; processor" in section
    drawings = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert "message queue" not in drawings  # a bare processor is no rival
    assert "What the patterns cost" not in page(ROWS)


def test_the_page_quotes_what_it_is_given() -> None:
    text = page(ROWS)
    assert "&lt;fast&gt; &amp; cheap" in text
    assert "Quix &lt;Streams&gt;" in text
    assert "it &lt;broke&gt;" in text
    assert "&lt;b&gt; &amp; c" in text


def test_a_page_of_nothing() -> None:
    assert Elements(page([])).open == []


def test_the_table_shows_every_row() -> None:
    out = io.StringIO()
    Console(file=out, width=200).print(table([row(against="[by hand]")], "A title"))
    text = out.getvalue()
    for part in ("[by hand]", "600,000", "700,000", "0.9", "0.85-0.95", "≥ 0.85", "met"):
        assert part in text


def test_markdown_keeps_its_columns() -> None:
    lines = markdown([row(against="a | b"), *ROWS]).splitlines()
    assert len(lines) == len(ROWS) + 3
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {11}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "met"),
        ({"met": False}, "missed"),
        ({"met": None}, ""),
        ({"error": "why"}, "failed"),
        ({"met": False, "violations": 3}, "missed, 3 out of order"),
        ({"met": None, "violations": 3}, "3 out of order"),
    ],
)
def test_what_became_of_a_target(changes: dict[str, Any], said: str) -> None:
    assert words.verdict(row(**changes)) == said


def numbers(drawing: str, name: str) -> list[float]:
    found = ElementTree.fromstring(drawing).iter()
    return [float(each.attrib[name]) for each in found if "rect" in each.tag]


def test_bars_are_as_long_as_their_logarithms() -> None:
    bars = [svg.Bar(name, value, 0) for name, value in (("a", 20), ("b", 200), ("c", 2000))]
    widths = numbers(svg.bars([svg.Group("g", bars)], "x"), "width")
    assert widths[1] - widths[0] == pytest.approx(widths[2] - widths[1], abs=0.2)
    assert widths[2] > widths[1] > widths[0]


def test_lines_go_where_their_points_are() -> None:
    line = svg.Line("n", [(0, 0), (5, 5), (10, 10)], 0)
    drawing = svg.lines([line], "x", "y")
    (points,) = re.findall(r'<polyline class="l0" points="([^"]*)"', drawing)
    places = [tuple(map(float, place.split(","))) for place in points.split()]
    assert places[1][0] == pytest.approx((places[0][0] + places[2][0]) / 2, abs=0.2)
    assert places[0][1] > places[1][1] > places[2][1]  # up is less in SVG


@pytest.mark.parametrize("points", [[], [(0.0, 1.0)], [(1.0, -1.0)]])
def test_what_has_no_place_on_a_logarithmic_scale_is_left_out(
    points: list[tuple[float, float]],
) -> None:
    assert svg.lines([svg.Line("n", points, 0)], "x", "y", log_x=True, log_y=True) == ""


def test_one_point_and_equal_points_can_be_drawn() -> None:
    for points in ([(1.0, 1.0)], [(1.0, 0.0), (1.0, 0.0)]):
        ElementTree.fromstring(svg.lines([svg.Line("n", points, 0)], "x", "y"))


@pytest.mark.parametrize(
    ("value", "said"), [(0.25, "0.25"), (12_800, "12.8k"), (1_500_000, "1.5M"), (2e9, "2G")]
)
def test_few_letters(value: float, said: str) -> None:
    assert svg.short(value) == said
