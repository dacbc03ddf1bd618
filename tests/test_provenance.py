"""How results say where they come from."""

import sys

from lilnetx_mini import __version__, provenance


def test_numbers_name_their_command_machine_and_versions_and_no_folders_of_this_one(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/home/me/bench.py", "--data", "/home/me/secret/data.npz", "--set", "lr=0.1"])
    made = provenance.circumstances()
    assert made["command"] == "bench.py --data data.npz --set lr=0.1"
    assert f"lilnetx-mini {__version__}" in made["versions"] and "numpy" in made["versions"]
    assert "processors" in made["machine"] and len(made["date"]) == 10
