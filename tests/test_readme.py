"""Figures in the README are those of the reports that it names."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
NAMED = sorted({name for line in re.findall(r"<!-- from (.*?) -->", README, re.DOTALL) for name in re.findall(r"results/\w+\.json", line)})


def _after(name):
    """The table or paragraph that says it comes from a report, without thousands' commas."""
    (text,) = re.findall(rf"<!-- from [^\n]*{name}[^>]*-->\n(.*?)\n\n(?!\|)", README + "\n\n", re.DOTALL)
    return re.sub(r"(?<=\d),(?=\d{3})", "", text)


def _list(values, digits, unit=" %", sign=""):
    text = ", ".join(f"{100 * v:{sign}.{digits}f}" for v in values)
    return re.sub(r"[+-](0\.0)(?!\d)", r"\1", text).replace("-", "−") + unit


def test_every_report_that_is_named_is_here():
    assert len(NAMED) > 4
    for name in NAMED:
        json.loads((ROOT / name).read_text())


@pytest.mark.parametrize("name", [n for n in NAMED if "compressed" in json.loads((ROOT / n).read_text())])
def test_sizes_and_accuracies_of_trained_networks(name):
    rows, text = json.loads((ROOT / name).read_text())["compressed"], README.replace(",", "")
    for r in rows:
        assert str(r["file_bytes"]) in text
        right = 100 * r["file_accuracy"]
        assert f"{right:.2f}" in README or f"{100 - right:.2f}" in README


def test_the_table_of_targets():
    table = _after("results/targets.json")
    for name, row in json.loads((ROOT / "results/targets.json").read_text()).items():
        assert f"`{name}`" in table
        for kind in row["asked"]:
            assert f"| {_list(row['error'][kind], 1, sign='+')} | {_list([r['accuracy'] for r in row['targets'][kind]], 1)}" in table
        assert f"| {_list(row['fixed_accuracy'], 1)} |" in table
