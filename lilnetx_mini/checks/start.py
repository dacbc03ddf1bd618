"""Checkers for notebook 00: what a file's size is, what a zero slice means, what checksums protect from."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .. import latent, lnx
from . import Verdict, Wrong, judge


def compression_ratio(answer: Callable[[str, int], float]) -> Verdict:
    """``answer(path, float_bytes)`` must be float_bytes over the length of the whole file."""

    def check() -> str:
        rng = np.random.default_rng()
        with tempfile.TemporaryDirectory() as folder:
            for size in (1, 1000, 4096, int(rng.integers(2, 10_000))):
                path = Path(folder) / "some.lnx"
                path.write_bytes(b"\0" * size)  # as compressible as can be: what counts is the length on disk
                float_bytes = int(rng.integers(size, 400_000))
                got = answer(str(path), float_bytes)
                if not isinstance(got, (int, float, np.number)) or abs(got - float_bytes / size) > 1e-9 * float_bytes:
                    raise Wrong(
                        f"for a file of {size} bytes and {float_bytes} bytes of float32 you returned {got!r}; "
                        f"it is {float_bytes / size:.3f}"
                    )
        return "the whole file counts, and nothing else"

    return judge(check)


def unread_inputs(answer: Callable[[np.ndarray, int, int], list[int]]) -> Verdict:
    """``answer(q, outputs, inputs)`` must list the input channels whose every slice is zero."""

    def check() -> str:
        rng = np.random.default_rng()
        for outputs, inputs, d in [(3, 5, 9), (5, 3, 9), (1, 4, 1), (4, 1, 25), (8, 8, 9)]:
            q = rng.integers(-1, 2, (outputs, inputs, d)) * (rng.random((outputs, inputs, 1)) < 0.5)
            dead = rng.random(inputs) < 0.5
            q[:, dead] = 0
            for c in np.flatnonzero(~dead)[
                ::2
            ]:  # every other one is alive through few values, which a sum would cancel
                q[:, c], row = 0, (outputs - 1 + c) % outputs
                q[row, c, 0] = 3
                q[row - 1 if d == 1 and outputs > 1 else row, c, d - 1] = -3
            for c in np.flatnonzero(~dead)[1::2]:
                q[outputs - 1, c, 0] = 1
            want = np.flatnonzero(dead).tolist()
            got = answer(q.reshape(outputs * inputs, d).copy(), outputs, inputs)
            if got is None or [int(i) for i in got] != want:
                raise Wrong(
                    f"{outputs} outputs, {inputs} inputs, d = {d}: inputs {want} are read by no slice, you returned {got}"
                )
        return "a channel is dead when none of its slices has a non-zero value"

    return judge(check)


def _some_file(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(4, 12)), int(rng.integers(4, 12)), 3, 3)
    q = np.rint(rng.laplace(0, 1, (shape[0] * shape[1], 9))).astype(np.int16)
    group = lnx.Group(latent.Decoder("full", (3, 3), rng.integers(-127, 128, 81), -8), q)
    side = lnx.Side("bias", "parameter", rng.integers(-99, 100, shape[0]), -6)
    return lnx.encode(lnx.Model([group], [lnx.Layer("weight", shape, 0)], [side], note="an exercise"))


def forge(answer: Callable[[bytes, int], bytes]) -> Verdict:
    """``answer(data, position)`` must invert one byte of the section coefficients and make all checksums right again."""

    def check() -> str:
        for seed in np.random.SeedSequence().generate_state(4):
            data = _some_file(int(seed))
            before = lnx.split(data)
            length = len(before["coefficients"])
            for position in (0, length - 1, length // 2):
                forged = answer(data, position)
                if not isinstance(forged, (bytes, bytearray)):
                    raise Wrong(f"you returned {type(forged).__name__}, not bytes")
                if len(forged) != len(data):
                    raise Wrong(f"the file had {len(data)} bytes and has {len(forged)} now: change bytes in place")
                try:
                    after = lnx.split(bytes(forged))
                except lnx.LnxError as e:
                    raise Wrong(f"the reader still notices: {e}") from None
                want = bytearray(before["coefficients"])
                want[position] ^= 0xFF
                changed = [n for n in before if n != "header" and after[n] != before[n]]
                if after["coefficients"] != bytes(want):
                    raise Wrong(
                        f"byte {position} of coefficients should be inverted, and no other; sections changed: {changed}"
                    )
                if changed != ["coefficients"]:
                    raise Wrong(f"only coefficients should change, but {changed} did")
        return "checksums protect from accidents, not from someone who can compute them too"

    return judge(check)
