"""Figures in the README are those of the reports that it names."""

import json
import re
from pathlib import Path
from statistics import mean

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
NAMED = sorted({name for line in re.findall(r"<!-- from (.*?) -->", README, re.DOTALL) for name in re.findall(r"results/\w+\.json", line)})


def _percent(values, sign=""):
    text = ", ".join(f"{100 * v:{sign}.1f}" for v in values)
    return re.sub(r"[+-](0\.0)(?!\d)", r"\1", text).replace("-", "−") + " %"


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
    (table,) = re.findall(r"<!-- from results/targets.json -->\n(.*?)\n\n", README, re.DOTALL)
    for name, row in json.loads((ROOT / "results/targets.json").read_text()).items():
        assert f"`{name}`" in table
        for kind in row["asked"]:
            got, fixed = _percent([r["accuracy"] for r in row["targets"][kind]]), _percent(row["fixed_accuracy"][kind])
            lines = [x for x in table.splitlines() if f"| {_percent(row['error'][kind], '+')} | {got}" in x]
            assert any(x.endswith(f"| {fixed} |") for x in lines)


def test_the_table_of_stand_ins_for_rounding():
    (table,) = re.findall(r"<!-- from results/quantisers.json -->\n(.*?)\n\n", README, re.DOTALL)
    for name, row in json.loads((ROOT / "results/quantisers.json").read_text()).items():
        (line,) = (x for x in table.splitlines() if f"`{name}`" in x)
        for kind, cell in zip(row["kinds"], line.split("|")[2:-1], strict=True):
            points = 100 * (mean(r["accuracy"] for r in row["kinds"][kind]) - mean(row["straight_at_these_sizes"][kind]))
            assert f"{points:+.1f}".replace("-", "−") == cell.strip()


def test_what_a_search_costs():
    (text,) = re.findall(r"<!-- from results/search.json -->\n(.*?)\n\n", README, re.DOTALL)
    rows = json.loads((ROOT / "results/search.json").read_text())["rows"]
    for name, row in rows.items():
        assert name == "plain" or f"{row['ratio']:.2f}" in text


def test_how_well_milliseconds_are_predicted():
    (text,) = re.findall(r"<!-- from results/latency.json -->\n(.*?)\n\n", README, re.DOTALL)
    for name, row in json.loads((ROOT / "results/latency.json").read_text()).items():
        (line,) = (x for x in text.splitlines() if f"`{name}`" in x)
        cells = [x.strip() for x in line.split("|")[2:-1]]
        assert cells == [f"{100 * r['median_error']:.1f} %" for r in row["runtimes"].values()]


def test_the_encoder_of_sst2():
    (text,) = re.findall(r"<!-- from results/sst2_encoder.json -->\n(.*?)\n\n", README, re.DOTALL)
    report = json.loads((ROOT / "results/sst2_encoder.json").read_text())
    plain, files = ([100 * r[key] for r in report[kind]] for kind, key in (("plain", "test_accuracy"), ("compressed", "file_accuracy")))
    text = " ".join(text.split())
    for values in (plain, files):
        assert f"{values[0]:.2f}, {values[1]:.2f} and {values[2]:.2f} %" in text and f"on the average {mean(values):.2f}" in text
    assert ", ".join(f"{100 * r['flops_left']:.1f}" for r in report["compressed"][:2]) in text
    assert f"{mean(plain) - mean(files):.2f} points less" in text
