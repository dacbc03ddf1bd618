"""What all checkers of exercises share: a verdict whatever the answer does, and no torch."""

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

from lilnetx_mini import checks

NAMES = [m.name for m in pkgutil.iter_modules(checks.__path__)]


def checkers():
    """Every function of the checks that returns a Verdict."""
    for name in NAMES:
        module = importlib.import_module(f"lilnetx_mini.checks.{name}")
        for key, f in vars(module).items():
            if inspect.isfunction(f) and f.__module__ == module.__name__ and f.__annotations__.get("return") == "Verdict":
                yield pytest.param(f, id=f"{name}.{key}")


def answered(check, answer):
    """The verdict, with the same answer wherever the checker takes one."""
    takes = [p for p in inspect.signature(check).parameters.values() if p.default is p.empty]
    return check(*[answer] * len(takes))


def test_every_module_has_checkers():
    found = [p.id.split(".")[0] for p in checkers()]
    assert set(found) == set(NAMES) and len(found) >= 3 * len(NAMES) - 3


@pytest.mark.parametrize("check", checkers())
def test_an_answer_that_fails_is_a_verdict(check):
    def unanswered(*_):
        raise NotImplementedError

    assert not (verdict := answered(check, lambda *_: [][1])) and "IndexError" in verdict.message
    assert not (verdict := answered(check, unanswered)) and "not attempted" in verdict.message


def test_checkers_need_no_torch():
    code = f"import sys\nfrom lilnetx_mini.checks import {', '.join(NAMES)}\nassert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
