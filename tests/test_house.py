"""Rules that the whole package keeps."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
CORE = [p for p in sorted((ROOT / "lilnetx_mini").rglob("*.py")) if "nn" not in p.relative_to(ROOT).parts]

# An import hook that makes torch, and everything else that only training needs, impossible to import.
WITHOUT_EXTRAS = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'sklearn', 'matplotlib', 'PIL', 'constriction', 'pandas', 'scipy'):
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Missing())
"""


def python(code: str, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.parametrize("path", CORE, ids=lambda p: p.name)
def test_the_core_never_imports_torch_at_import_time(path):
    for node in ast.parse(path.read_text()).body:
        names = (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        assert not any(n.split(".")[0] in ("torch", "nn") for n in names)


def test_importing_every_core_module_leaves_torch_out():
    modules = [
        f"lilnetx_mini.{p.stem}"
        for p in CORE
        if p.parent.name == "lilnetx_mini" and p.stem not in ("__init__", "__main__", "plots")
    ]
    done = python(f"import sys, {', '.join(modules)}; assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_without_torch_a_file_decodes_and_predicts(golden):
    for arguments in (
        ["info", golden / "digits.lnx"],
        ["evaluate", golden / "digits.lnx", "--data", golden / "digits.npz"],
        ["predict", golden / "digits.lnx", golden / "digits.npz"],
    ):
        done = python(
            WITHOUT_EXTRAS + "import sys; sys.argv[0] = 'lilnetx'; from lilnetx_mini.cli import main; main()",
            *arguments,
        )
        assert done.returncode == 0 and done.stdout, done.stderr


def test_the_runtime_without_torch_and_the_torch_module_agree_on_every_test_image(golden, tmp_path):
    import torch

    from lilnetx_mini import nn
    from lilnetx_mini.nn import models

    images = np.load(golden / "digits.npz")["x"].astype(np.float32)
    np.save(tmp_path / "x.npy", images)
    code = WITHOUT_EXTRAS + (
        "import numpy as np; from lilnetx_mini.runtime import Network;"
        "np.save(sys.argv[3], Network.load(sys.argv[1])(np.load(sys.argv[2])))"
    )
    done = python(code, golden / "digits.lnx", tmp_path / "x.npy", tmp_path / "y.npy")
    assert done.returncode == 0, done.stderr
    module = nn.load_into(models.digits_resnet().eval(), golden / "digits.lnx")
    with torch.no_grad():
        want = module(torch.from_numpy(images)).numpy()
    have = np.load(tmp_path / "y.npy")
    assert (have.argmax(1) == want.argmax(1)).all() and len(have) == 360
    assert np.abs(have - want).max() <= 1e-4


@pytest.mark.parametrize(
    "code,extra",
    [
        ("import lilnetx_mini.nn", "train"),
        ("import lilnetx_mini.plots", "train"),
        ("from lilnetx_mini.data import digits; digits()", "train"),
        ("from lilnetx_mini.data import load_images; load_images(sys.argv[1], (1, 8, 8))", "images"),
    ],
)
def test_a_missing_extra_is_named_with_the_command_that_installs_it(code, extra, golden):
    done = python(WITHOUT_EXTRAS + code, golden / "digits.lnx")
    assert f"pip install 'lilnetx-mini[{extra}]'" in done.stderr


def test_starting_a_kernel_imports_no_scipy_linalg_and_leaves_other_peoples_kernels_alone():
    """Numba would import all of scipy.linalg, 0.3 s, to learn whether it is there."""
    script = """
import sys
import numpy as np
from lilnetx_mini import lnx
lnx.read("tests/golden/digits.lnx")
assert "scipy.linalg" not in sys.modules
import numba
product = numba.njit(lambda a, b: np.dot(a, b))
a = np.ones((2, 3))
try:
    assert (product(a, a.T) == 3).all()
except ImportError:  # without SciPy, Numba's own message
    pass
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
