"""How results say where they come from."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy  # noqa: F401 (a library that takes part)
import pytest

from lilnetx_mini import __version__, provenance


def test_numbers_name_their_command_machine_and_versions_and_no_folders_of_this_one(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/home/me/bench.py", "--data", "/home/me/secret/data.npz", "--set", "lr=0.1"])
    made = provenance.circumstances()
    assert made["command"] == "bench.py --data data.npz --set lr=0.1"
    assert f"lilnetx-mini {__version__}" in made["versions"] and "numpy" in made["versions"]
    assert "processors" in made["machine"] and len(made["date"]) == 10


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_numbers_name_the_commit_and_whether_sources_have_changed_since(tmp_path, monkeypatch):
    package = tmp_path / "lilnetx_mini"
    package.mkdir()
    source = package / "provenance.py"
    source.write_text("# a source")
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.setattr(provenance, "__file__", str(source))
    assert provenance._commit() == {}  # an installed package
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    commit = provenance._commit()["commit"]
    assert len(commit) >= 7 and head.startswith(commit)
    Path(tmp_path, "result.json").write_text("{}")  # no source
    assert provenance._commit()["commit"] == commit
    source.write_text("# another")
    assert provenance._commit()["commit"] == f"{commit} with changes"
