"""Checkers of the tutorials' exercises: each draws random and adversarial inputs, and says what is wrong with an answer.

    from lilnetx_mini.checks import rounding
    rounding.uniform_quantiser(my_function)

A checker returns a Verdict, which prints itself in a notebook and is true only if the answer is right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Verdict:
    """passed: True if right. message: what was checked, or the first thing that is wrong."""

    passed: bool
    message: str

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return f"{'right' if self.passed else 'not yet'}: {self.message}"


class Wrong(Exception):
    """Raised inside a checker at the first thing that is wrong; its text is for the learner."""


def judge(check: Callable[[], str]) -> Verdict:
    """Run a checker's body: it returns what it verified, or raises Wrong. Whatever the answer itself raises is shown too."""
    try:
        return Verdict(True, check())
    except Wrong as e:
        return Verdict(False, str(e))
    except NotImplementedError:
        return Verdict(False, "not attempted yet: replace the line that raises NotImplementedError")
    except Exception as e:  # the learner's code may do anything
        return Verdict(False, f"your function raised {type(e).__name__}: {e}")


def number(x: Any, call: str, kinds: str = "fiu", what: str = "one number") -> float:
    """The answer to `call` as a float, or Wrong if it is not one number of these kinds, NumPy's letters."""
    if x is None:
        raise Wrong(f"{call} returned None: is there a return?")
    x = np.asarray(x)
    if x.size != 1 or x.dtype.kind not in kinds:
        raise Wrong(f"{call} should be {what}, and is {x.dtype} of shape {x.shape}")
    return float(x.reshape(()))


def row(x: NDArray, most: int = 9) -> str:
    """The first numbers of an array as text, without NumPy's type names."""
    flat = np.ravel(x)
    return "[" + ", ".join(f"{v:.6g}" for v in flat[:most]) + (", ..." if flat.size > most else "") + "]"
