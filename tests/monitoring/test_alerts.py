"""The alert rules and the dashboard ask for what /metrics prints, in PromQL that is valid.

promtool checks the rules and runs their tests where it is installed; a parser of PromQL reads every
expression everywhere.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from streams import Retry, Sqlite, Streams
from streams.eventsourcing import Snapshot
from streams.inspection.doctor.monitoring_checks import (
    AGGREGATE_ALERTS,
    MANAGER_ALERTS,
    OUTBOX_ALERTS,
    PROJECTION_ALERTS,
    REQUIRED_ALERTS,
    VIEW_ALERTS,
)
from streams.outbox import Outbox
from streams.patterns import MonitoringServer
from tests.eventsourcing.bank import accounts, deposit
from tests.managers.purses import World
from tests.monitoring.conftest import until
from tests.views.bank import Balance, fold_balance

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "monitoring" / "alerts.yml"
DASHBOARD = ROOT / "monitoring" / "dashboard.json"
TESTS = Path(__file__).with_name("alerts_test.yml")

PROMETHEUS = {"instance", "job"}
"""Labels that Prometheus adds when it scrapes."""


def rules() -> list[dict[str, Any]]:
    found = yaml.safe_load(RULES.read_text())
    assert list(found) == ["groups"]
    return [rule for group in found["groups"] for rule in group["rules"]]


def dashboard() -> Any:
    return json.loads(DASHBOARD.read_text())


def expressions() -> list[str]:
    """Every expression of both files, with Grafana's variables as Grafana would fill them in."""
    found = [rule["expr"] for rule in rules()]
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            filled = target["expr"].replace("$__rate_interval", "5m").replace("$group", ".*")
            assert "$" not in filled, filled
            found.append(filled)
    return found


def selectors(expression: Any) -> Iterator[Any]:
    """The selectors of metrics in a parsed expression, however deep."""
    if isinstance(expression, promql_parser.VectorSelector):
        yield expression
        return
    for name in ("args", "expr", "lhs", "rhs", "param", "vector_selector"):
        part = getattr(expression, name, None)
        for each in part if isinstance(part, list) else [part]:
            if each is not None and not isinstance(each, (str, float, int)):
                yield from selectors(each)


@pytest.fixture
async def printed(tmp_path: Path) -> dict[str, set[str]]:
    """The names that /metrics prints, each with its labels."""
    app = Streams("memory://")
    topic = app.topic("orders", int)

    @app.processor(topic, group="billing", retry=Retry(attempts=2, delay=0.001))
    async def bill(value: int) -> None:
        if value == 13:
            raise ValueError("thirteen")

    ledger = accounts(app, snapshot=Snapshot(every=1))
    ledger.view("balances", Balance)(fold_balance)
    World(app, "purses")
    Outbox(app, f"sqlite:///{tmp_path}/outbox.db")

    @app.processor(topic, group="sums", transaction=Sqlite(tmp_path / "sums.db"), version=1)
    def add(value: int) -> None:
        pass

    with MonitoringServer(app, port=0) as server:
        async with app:
            await topic.publish_many(list(range(20)))
            await ledger.decide("a", deposit, 1)
            now = await until(
                server,
                lambda now: (
                    now.of("messages_handled_total", group="billing") == [19]
                    and now.of("lag_messages")
                    and now.of("aggregate_snapshots_total", aggregate=ledger.name) == [1]
                    and now.of("view_folded_ratio") == [1]
                    and now.of("view_events_total") == [1]
                    and now.of("outbox_rows") == [0]
                    and now.of("projection_serving") == [1]
                ),
            )
    found: dict[str, set[str]] = {}
    for sample in now.samples:
        found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_the_parser_finds_selectors_however_deep() -> None:
    parsed = promql_parser.parse(
        "histogram_quantile(0.9, sum by (le) (rate(a[5m]))) > 1 unless on (x) b == 1 or topk(2, c)"
    )
    assert [each.name for each in selectors(parsed)] == ["a", "b", "c"]


@pytest.mark.parametrize("expression", expressions())
def test_every_expression_is_valid_and_selects_something(expression: str) -> None:
    assert list(selectors(promql_parser.parse(expression)))


async def test_every_metric_and_label_they_name_is_printed(printed: dict[str, set[str]]) -> None:
    for expression in expressions():
        labels: set[str] = set()
        for selector in selectors(promql_parser.parse(expression)):
            assert selector.name in printed, expression
            labels |= printed[selector.name]
            matched = {matcher.name for matcher in selector.matchers.matchers}
            assert matched <= printed[selector.name] | PROMETHEUS, expression
        for listed in re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", expression):
            names = {name.strip() for name in listed.split(",")}
            assert names <= labels | PROMETHEUS, expression


async def test_every_metric_is_watched_or_shown(printed: dict[str, set[str]]) -> None:
    asked = {
        re.sub(r"_(bucket|sum|count|total)$", "", selector.name)
        for expression in expressions()
        for selector in selectors(promql_parser.parse(expression))
    }
    there = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in printed}
    assert there - asked == set()


def test_every_rule_says_how_bad_it_is_and_what_to_do() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    assert {
        *REQUIRED_ALERTS,
        *AGGREGATE_ALERTS,
        *VIEW_ALERTS,
        *MANAGER_ALERTS,
        *OUTBOX_ALERTS,
        *PROJECTION_ALERTS,
    } <= set(names)
    for rule in rules():
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"] == {"severity": rule["labels"]["severity"]}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert re.fullmatch(r"\d+m", rule.get("for", "0m"))
        for text in rule["annotations"].values():
            assert text.count("{{") == text.count("}}")
            for label in re.findall(r"\$labels\.(\w+)", text):
                assert label in rule["expr"] or label in PROMETHEUS | {"processor", "group"}


def test_the_dashboard_is_one_that_grafana_can_load() -> None:
    found = dashboard()
    assert {"title", "uid", "schemaVersion", "panels", "templating"} <= set(found)
    ids = [panel["id"] for panel in found["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in found["panels"]:
        assert panel["title"]
        assert panel["description"]
        assert panel["targets"]
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
    names = {variable["name"] for variable in found["templating"]["list"]}
    assert names == {"datasource", "group"}


def promtool(*arguments: str) -> str:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (it comes with Prometheus)")
    ended = subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_promtool_takes_the_rules() -> None:
    assert f"{len(rules())} rules found" in promtool("check", "rules", str(RULES))


def test_the_rules_fire_when_they_should() -> None:
    assert "SUCCESS" in promtool("test", "rules", str(TESTS))


def test_the_tests_of_the_rules_name_rules_and_metrics_that_there_are() -> None:
    found = yaml.safe_load(TESTS.read_text())
    assert [(TESTS.parent / name).resolve() for name in found["rule_files"]] == [RULES]
    names = {rule["alert"] for rule in rules()}
    for test in found["tests"]:
        for case in test["alert_rule_test"]:
            assert case["alertname"] in names
