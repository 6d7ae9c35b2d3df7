"""The page: one self-contained HTML file with plots; it loads nothing and runs no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from benchmarks.measure import Row
from benchmarks.pattern_cases import PATTERN_PREFIX
from benchmarks.report import svg, words
from benchmarks.report.table import COLUMNS, cells

_STYLE = """
:root { color-scheme: light dark; --back: #fff; --ink: #1b1f24; --soft: #6a737d; --rule: #d8dee4;
  --good: #1a7f37; --bad: #9a6700; --worse: #cf222e;
  --c0: #0969da; --c1: #8c959f; --c2: #bf8700; --c3: #8250df; --c4: #1a7f37; --c5: #cf222e; }
@media (prefers-color-scheme: dark) { :root { --back: #0d1117; --ink: #e6edf3; --soft: #8b949e;
  --rule: #30363d; --good: #3fb950; --bad: #d29922; --worse: #f85149;
  --c0: #58a6ff; --c1: #8b949e; --c2: #d29922; --c3: #bc8cff; --c4: #3fb950; --c5: #f85149; } }
body { background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
  max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; width: 100%; }
th, td { padding: .25rem .5rem; border-bottom: 1px solid var(--rule); text-align: left;
  vertical-align: top; }
.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.met { color: var(--good); } .missed { color: var(--bad); } .failed { color: var(--worse); }
.soft, figcaption { color: var(--soft); font-size: 13px; }
figure { margin: 1rem 0; } details { margin: .3rem 0; font-size: 13px; }
dt { font-weight: 600; } dd { margin: 0 0 .4rem 1rem; overflow-wrap: anywhere; }
svg { max-width: 54rem; width: 100%; height: auto; font: 11px system-ui, sans-serif; }
svg text { fill: var(--ink); } svg text.group { font-weight: 600; }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg polyline, svg line[class^=l] { fill: none; stroke-width: 2; }
""" + "".join(
    f"svg .c{n} {{ fill: var(--c{n}); }} svg .l{n} {{ stroke: var(--c{n}); }}\n"
    for n in range(svg.SERIES)
)

_NUMBERS = ("ours", "theirs", "ratio", "spread", "target")


def page(rows: Sequence[Row]) -> str:
    """The whole page."""
    machine = rows[0]["machine"] if rows else {}
    sections = [
        ("The table", _table(rows)),
        ("Throughput by case", _throughput(rows)),
        ("Latency", _latency(rows)),
        ("Throughput against concurrency", _concurrency(rows)),
        ("Memory over time", _memory(rows)),
        ("What the patterns cost", _patterns(rows)),
        ("Codecs", _codecs(rows)),
        ("Settings", _settings(rows)),
    ]
    body = "".join(f"<h2>{title}</h2>{text}" for title, text in sections if text)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Benchmarks</title><style>{_STYLE}</style></head><body>"
        f"<h1>Benchmarks</h1><p>{_summary(rows)}</p>"
        f'<p class="soft">{_facts(machine)}</p>{body}</body></html>\n'
    )


def _summary(rows: Sequence[Row]) -> str:
    aimed = [row for row in rows if row["target"] is not None and row["error"] is None]
    met = sum(1 for row in aimed if row["met"])
    failed = sum(1 for row in rows if row["error"] is not None)
    said = f"{met} of {len(aimed)} targets met"
    if failed:
        said += f", {failed} row{'s' if failed > 1 else ''} failed"
    return (
        f"{said}. Each figure alternates with its baseline in one run. A ratio is ours divided by "
        "theirs, the median over the turns; the spread is the lowest and the highest. Loops by "
        "hand do the same work with the same client settings. A pattern's baseline is ours too: "
        "the bare processor, publish or call."
    )


def _facts(machine: Mapping[str, str]) -> str:
    return escape(", ".join(f"{name} {value}" for name, value in machine.items()))


def _table(rows: Sequence[Row]) -> str:
    def cell(column: str, text: str, row: Row) -> str:
        kinds = ["n"] if column in _NUMBERS else []
        if not column:
            kinds.append(words.verdict(row).partition(",")[0])
        named = f' class="{" ".join(kinds)}"' if any(kinds) else ""
        title = f' title="{escape(row["error"])}"' if row["error"] and not column else ""
        return f"<td{named}{title}>{escape(text)}</td>"

    head = "".join(
        f"<th{' class=n' if column in _NUMBERS else ''}>{column}</th>" for column in COLUMNS
    )
    lines = (
        "".join(cell(column, text, row) for column, text in zip(COLUMNS, cells(row), strict=True))
        for row in rows
    )
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _figure(drawing: str, caption: str) -> str:
    if not drawing:
        return ""
    return f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def _throughput(rows: Sequence[Row]) -> str:
    """A plot for each log: ours and its rivals, case by case."""
    parts = []
    for log in dict.fromkeys(row["log"] for row in rows):
        groups: dict[str, list[svg.Bar]] = {}
        for row in rows:
            if row["log"] != log or row["unit"] != "messages/s" or _is_pattern(row):
                continue
            if row["figure"] is None or row["baseline"] is None:
                continue
            found = groups.setdefault(row["case"], [svg.Bar("streams", row["figure"], 0)])
            colour = 2 if row["against"].startswith("the limit") else 1
            colour = colour if "by hand" in row["against"] or colour == 2 else 3
            found.append(svg.Bar(row["against"], row["baseline"], colour))
        drawing = svg.bars([svg.Group(n, b) for n, b in groups.items()], "messages/s")
        parts.append(_figure(drawing, f"{log}: messages a second, on a logarithmic scale"))
    return "".join(parts)


def _latency(rows: Sequence[Row]) -> str:
    parts = []
    for log in dict.fromkeys(row["log"] for row in rows):
        drawn: list[svg.Line] = []
        for row in rows:
            if row["log"] != log or not row["case"].endswith(", p50"):
                continue
            case = row["case"].removesuffix(", p50")
            for whose, name in (("ours", f"streams, {case}"), ("baseline", row["against"])):
                quantiles = row["details"].get(whose, {}).get("quantiles")
                if quantiles and name not in {line.name for line in drawn}:
                    points = _tail(quantiles)
                    drawn.append(svg.Line(name, points, len(drawn), whose != "ours"))
        drawing = svg.lines(drawn, "1 message in … is slower", "ms", log_x=True, log_y=True)
        parts.append(_figure(drawing, f"{log}: latency from publish to handler, 1,000 a second"))
    return "".join(parts)


def _tail(quantiles: Mapping[str, float]) -> list[tuple[float, float]]:
    """Quantiles scaled by the rarity of the values beyond: 2 is the median, 100 is p99."""
    found = []
    for name, value in quantiles.items():
        percent = float(name[1:])
        if percent < 100:
            found.append((100 / (100 - percent), value))
    return sorted(found)


def _concurrency(rows: Sequence[Row]) -> str:
    parts = []
    for log in dict.fromkeys(row["log"] for row in rows):
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            at = row["concurrency"]
            if row["log"] != log or at is None or "waits 5 ms" not in row["case"]:
                continue
            if row["figure"] is None or row["baseline"] is None:
                continue
            if row["against"] == "the limit":
                lines.setdefault("streams", []).append((at, row["figure"]))
                lines.setdefault("the limit", []).append((at, row["baseline"]))
            else:
                name = row["against"].partition(",")[0]
                lines.setdefault(name, []).append((at, row["baseline"]))
        drawn = [
            svg.Line(name, sorted(points), number, name == "the limit")
            for number, (name, points) in enumerate(lines.items())
        ]
        drawing = svg.lines(drawn, "handlers at once", "messages/s", log_x=True, log_y=True)
        parts.append(_figure(drawing, f"{log}: async handlers that wait 5 ms"))
    return "".join(parts)


def _memory(rows: Sequence[Row]) -> str:
    drawn: list[svg.Line] = []
    for row in rows:
        if "backlog" not in row["case"] or row["unit"] != "messages/s":
            continue
        for whose, name in (("ours", row["case"]), ("baseline", row["against"])):
            memory = row["details"].get(whose, {}).get("memory")
            if memory:
                points = [(float(x), float(y)) for x, y in memory]
                drawn.append(svg.Line(f"{row['log']}: {name}", points, len(drawn), whose != "ours"))
    drawing = svg.lines(drawn, "seconds", "MiB resident")
    return _figure(drawing, "The whole process, the driver's queue included")


def _is_pattern(row: Row) -> bool:
    return row["case"].startswith(PATTERN_PREFIX)


def _patterns(rows: Sequence[Row]) -> str:
    """The patterns' costs in microseconds per message: a ratio to a fast call says little."""
    lines = []
    for row in rows:
        if not _is_pattern(row) or row["figure"] is None or row["baseline"] is None:
            continue
        ours = _microseconds(row["figure"], row["unit"])
        theirs = _microseconds(row["baseline"], row["unit"])
        names = (row["log"], row["case"].removeprefix(PATTERN_PREFIX), row["against"])
        figures = (f"{ours:.3g}", f"{theirs:.3g}", f"{ours - theirs:+.3g}")
        cells = "".join(f"<td>{escape(name)}</td>" for name in names)
        cells += "".join(f'<td class="n">{figure}</td>' for figure in figures)
        lines.append(f"<tr>{cells}</tr>")
    if not lines:
        return ""
    head = "<th>log</th><th>pattern</th><th>against</th>"
    head += "".join(f"<th class=n>{name}</th>" for name in ("with, µs", "without, µs", "more, µs"))
    return (
        "<p>Microseconds from one message, event, call or saga to the next, with the pattern and "
        "without, while many are under way at once.</p>"
        f'<div class="scroll"><table><tr>{head}</tr>{"".join(lines)}</table></div>'
    )


def _microseconds(figure: float, unit: str) -> float:
    return 1e6 / figure if unit.endswith("/s") else figure


def _codecs(rows: Sequence[Row]) -> str:
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["log"] != "codecs" or row["figure"] is None:
            continue
        what = row["case"].rpartition(", ")[2]
        ours = "MessagePack" if row["case"].startswith("MessagePack") else "stream_codecs.Json"
        found.setdefault(ours, {})[what] = row["figure"]
        found.setdefault(row["against"], {})[what] = row["baseline"]
    if not found:
        return ""
    head = "<th>codec</th><th class=n>bytes</th><th class=n>encode/s</th><th class=n>decode/s</th>"
    body = "".join(
        f"<tr><td>{escape(name)}</td>"
        + "".join(
            f'<td class="n">{words.figure(values.get(what), "messages/s")}</td>'
            for what in ("size", "encode", "decode")
        )
        + "</tr>"
        for name, values in found.items()
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _settings(rows: Sequence[Row]) -> str:
    seen: dict[str, Mapping[str, str]] = {}
    for row in rows:
        for whose, settings in row["settings"].items():
            name = "streams" if whose == "ours" else row["against"]
            if settings:
                seen.setdefault(f"{row['log']}, {row['case']}: {name}", settings)
    return "".join(
        f"<details><summary>{escape(name)}</summary><dl>"
        + "".join(
            f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>"
            for key, value in settings.items()
        )
        + "</dl></details>"
        for name, settings in seen.items()
    )
