"""What is tested of every exercise: its checker accepts right answers, however written, and says what is wrong with others."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest


def accepted(check: Callable, answers: Sequence[Callable], times: int = 1) -> Callable:
    """A test that `check` accepts every answer, `times` times where it draws its inputs."""

    @pytest.mark.parametrize("answer", answers)
    def test(answer: Callable) -> None:
        for _ in range(times):
            verdict = check(answer)
            assert verdict, verdict

    return test


def refused(check: Callable, answers: dict[str, tuple[Any, str]]) -> Callable:
    """A test that `check` refuses every answer with a message in which its reason stands: name -> (answer, reason)."""

    @pytest.mark.parametrize("name", answers)
    def test(name: str) -> None:
        answer, reason = answers[name]
        verdict = check(answer)
        assert not verdict and reason in verdict.message, verdict

    return test
