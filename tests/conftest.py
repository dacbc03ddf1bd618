"""Shared by all tests. Sets Numba's cache folder before anything imports Numba."""

import hashlib
import os
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Numba does not notice when a function that a cached kernel calls has changed in another file: one cache for every state
# of the sources, and one for every test worker, so that no two write to the same.
_sources = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(ROOT.glob("lilnetx_mini/*.py")))).hexdigest()[:16]
_worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"lilnetx-numba-{_sources}-{_worker}"))

import pytest  # noqa: E402

GOLDEN = ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the files that keep the format from drifting."""
    return GOLDEN


@pytest.fixture
def data_dir() -> Path:
    """Real data sets, where the user has them."""
    folder = os.environ.get("LILNETX_DATA")
    if not folder:
        pytest.skip("LILNETX_DATA is not set: no real data to test with")
    return Path(folder)
