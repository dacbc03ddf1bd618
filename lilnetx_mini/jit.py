"""numba.njit as every kernel here uses it: compiled once, kept on disk, and quick to start in the next process."""

from __future__ import annotations

import functools
import sys
from importlib.machinery import PathFinder

import numba


def _spare_scipy() -> None:
    """Keep Numba from importing scipy.linalg when its first kernel loads.

    It does so only to learn whether SciPy's BLAS is there, for products of matrices inside kernels. That takes 0.3 s, and
    none of our kernels has such a product; that SciPy can be found is answer enough. Other people's kernels still check
    when they are compiled.
    """
    ready = "numba.np.arraymath" in sys.modules or "scipy.linalg" in sys.modules
    if ready or numba.config.DISABLE_JIT or PathFinder.find_spec("scipy") is None:
        return
    from numba.np import linalg

    check = getattr(linalg, "ensure_blas", None)
    if check is None:
        return  # another version of Numba: as it likes
    linalg.ensure_blas = lambda: None
    try:
        from numba.np import arraymath
    finally:
        linalg.ensure_blas = check
    arraymath.ensure_blas = check


_spare_scipy()
njit = functools.partial(numba.njit, cache=True)
