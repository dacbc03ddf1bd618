"""What a reader needs to judge or repeat a number: how it came about."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from . import __version__

LIBRARIES = ("numpy", "numba", "torch", "constriction", "onnxruntime", "scipy")


def _commit() -> dict[str, str]:
    """The commit of the checkout that the package lies in, and whether sources differ from it; nothing for an installed package."""
    root = Path(__file__).parent.parent
    git = ["git", "-C", str(root)]
    try:
        if not (root / ".git").exists():
            return {}
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
        sources = [*git, "status", "--porcelain", "--", "lilnetx_mini", "benchmarks"]
        changed = subprocess.run(sources, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"commit": commit.strip() + (" with changes" if changed else "")}


COMMIT = _commit()  # when the process starts: a checkout may move on while a network trains


def _processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), platform.machine())


def circumstances(device: str = "no GPU used") -> dict[str, str]:
    """Command, date, machine, the versions of those libraries that took part, and the commit if there is one.

    Of absolute paths on the command line only the last part is kept: the rest means nothing elsewhere.
    """
    arguments = [Path(a).name if Path(a).is_absolute() else a for a in sys.argv[1:]]
    program = Path(sys.argv[0])
    name = "lilnetx" if program.name == "__main__.py" else program.name
    used = [f"{library} {version(library)}" for library in LIBRARIES if library in sys.modules]
    return {
        "command": " ".join([name, *arguments]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{_processor()}, {os.cpu_count()} processors, {platform.system()}, {device}",
        "versions": ", ".join([f"Python {platform.python_version()}", *used, f"lilnetx-mini {__version__}"]),
        **COMMIT,
    }
