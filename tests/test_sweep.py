"""Curves, the search for a size, and what a training will take."""

import json

import pytest
from test_options import SMALL, _known  # noqa: F401

from lilnetx_mini import cli
from lilnetx_mini.errors import InputError
from lilnetx_mini.nn import estimate, recipes, report, sweep


def test_a_sweep_has_a_point_for_every_value_and_keeps_what_is_there(tmp_path, monkeypatch):
    done = sweep.sweep("quarters", {}, "lam_rate", [0.1, 30.0], [0], tmp_path, progress=False, jobs=1)
    assert [(p["value"], p["seed"]) for p in done["points"]] == [(0.1, 0), (30.0, 0)]
    assert done["points"][1]["file_bytes"] < done["points"][0]["file_bytes"] and len(done["plain"]) == 1
    assert json.loads((tmp_path / "sweep.json").read_text())["points"] == done["points"]
    sweep.picture(done, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 5000 and sweep.table(done).count("\n") == 3
    monkeypatch.setattr(report.Run, "_epoch", None)  # nothing is trained any more
    assert sweep.sweep("quarters", {}, "lam_rate", [0.1, 30.0], [0], tmp_path, progress=False, jobs=1)["points"] == done["points"]


def test_the_smallest_file_at_an_accuracy(tmp_path, monkeypatch):
    """Of a recipe whose accuracy rises with its size; the trainings themselves are replaced."""

    def main_job(name, changes, seeds, out, plain, **options):
        size = int(changes["target_size"])
        row = {"file_bytes": size, "validation_accuracy": 0.9 if size >= 700 else 0.5}
        return {"compressed": [row], "plain": [{"validation_accuracy": 0.91}] if plain else []}

    monkeypatch.setattr(report, "main_job", main_job)
    said = []
    best = sweep.smallest("quarters", {}, 2.0, [0], tmp_path, said.append)
    assert 700 <= best["compressed"][0]["file_bytes"] <= 900 and len(said) == len(best["tries"]) <= sweep.TRIES
    with pytest.raises(InputError, match="out of reach"):
        sweep.smallest("quarters", {}, 0.5, [0], tmp_path)
    with pytest.raises(InputError, match="between 0 and 100"):
        sweep.smallest("quarters", {}, -1, [0], tmp_path)
    with pytest.raises(InputError, match="leave one of them out"):
        sweep.smallest("quarters", {"target_size": "1000"}, 1, [0], tmp_path)


def test_an_estimate_counts_what_there_is():
    e = estimate.estimate(recipes.get("digits"))
    assert e["parameters"] - 9 * 9 > e["compressed"] == 74_512 and e["steps"] == 600
    assert e["images"] == {"train": 1257, "validation": 180, "test": 360}
    assert e["memory"]["optimiser"] >= 2 * 4 * e["compressed"] and e["memory"]["activations"] > 1e6
    assert "600 steps" in estimate.table(e)
    plain = estimate.estimate(SMALL)
    assert plain["macs"] == 8 * 9 * 64 + 64 * 9 * 16 + 4 * 128


def test_commands_of_their_own(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        cli.app([str(a) for a in arguments], standalone_mode=False)
        return capsys.readouterr().out

    assert "M multiply-adds" in command("train", "quarters", "--dry-run") and not list(tmp_path.iterdir())
    shown = command("sweep", "quarters", "--target-size", "1kB", "--set", "epochs=1", "--out", tmp_path / "s", "--jobs", "1", "--quiet")
    assert "sweep.png" in shown and (tmp_path / "s" / "sweep.png").exists()
    for wrong, message in [((), "one of --lam-rate"), (("--lam-rate", "a,b"), "not a number"),
                           (("--lam-rate", "1", "--target-size", "1kB"), "one of")]:  # fmt: skip
        with pytest.raises(InputError, match=message):
            command("sweep", "quarters", *wrong)
