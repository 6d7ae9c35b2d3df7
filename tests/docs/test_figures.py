"""The figures that the README tells are those of the last benchmark that is committed."""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks.report import words

ROOT = Path(__file__).parents[2]

ROW = re.compile(r"^\| (?P<case>[^|]+?) \| (?P<against>[^|]+?) \| (?P<ratio>[\d.]+) \|$", re.M)


def test_the_readme_tells_the_last_results() -> None:
    rows = json.loads((ROOT / "benchmarks/results/results.json").read_text())
    measured = {(r["case"], r["against"]): words.ratio(r) for r in rows if r["log"] == "kafka"}
    section = (ROOT / "README.md").read_text().partition("\n## Speed\n")[2].partition("\n## ")[0]
    told = list(ROW.finditer(section))
    assert len(told) > 5
    for row in told:
        assert row["ratio"] == measured[row["case"], row["against"]], row["case"]
