"""The checkers of notebook 00 accept right answers and say what is wrong with plausible wrong ones."""

import os
import zlib

import numpy as np
import pytest

from lilnetx_mini import lnx
from lilnetx_mini.checks import start


def forge(data, position, sections=True, directory=True, name="coefficients", mask=0xFF):
    forged, number = bytearray(data), lnx.SECTIONS.index(name) + 1
    end = 6 + 9 * data[5]
    begin = end + 4
    for row in range(6, end, 9):
        length = int.from_bytes(data[row + 1 : row + 5], "little")
        if data[row] == number:
            forged[begin + position % length] ^= mask
            if sections:
                forged[row + 5 : row + 9] = zlib.crc32(forged[begin : begin + length]).to_bytes(4, "little")
        begin += length
    if directory:
        forged[end : end + 4] = zlib.crc32(forged[:end]).to_bytes(4, "little")
    return bytes(forged)


def zeros(q, outputs, inputs):
    return np.flatnonzero(~q.reshape(outputs, inputs, -1).any(axis=(0, 2)))


@pytest.mark.parametrize("check,answer", [
    (start.compression_ratio, lambda p, n: n / os.path.getsize(p)),
    (start.compression_ratio, lambda p, n: n / len(open(p, "rb").read())),
    (start.unread_inputs, zeros),
    (start.unread_inputs, lambda q, o, i: [k for k in range(i) if not q[k::i].any()]),
    (start.unread_inputs, lambda q, o, i: np.where(np.abs(q.reshape(o, i, -1)).max(axis=(0, 2)) == 0)[0].tolist()),
    (start.forge, forge)])  # fmt: skip
def test_right_answers_pass(check, answer):
    verdict = check(answer)
    assert verdict, verdict


@pytest.mark.parametrize("check,answer,says", [
    (start.compression_ratio, lambda p, n: os.path.getsize(p) / n, "it is"),
    (start.compression_ratio, lambda p, n: n / len(zlib.compress(open(p, "rb").read())), "it is"),
    (start.compression_ratio, lambda p, n: n // os.path.getsize(p), "it is"),
    (start.compression_ratio, lambda p, n: n / 4 / os.path.getsize(p), "it is"),
    (start.compression_ratio, lambda p, n: None, "None"),
    (start.unread_inputs, lambda q, o, i: np.flatnonzero(~q.reshape(o, i, -1).any(axis=(1, 2))), "read by no slice"),
    (start.unread_inputs, lambda q, o, i: np.flatnonzero(q.reshape(o, i, -1).sum(axis=(0, 2)) == 0), "read by no slice"),
    (start.unread_inputs, lambda q, o, i: np.flatnonzero(~q.reshape(i, o, -1).any(axis=(1, 2))), "read by no slice"),
    (start.unread_inputs, lambda q, o, i: np.flatnonzero(~q.any(1)), "read by no slice"),
    (start.unread_inputs, lambda q, o, i: np.flatnonzero(~q.reshape(o, i, -1)[0].any(1)), "read by no slice"),
    (start.unread_inputs, lambda q, o, i: None, "None"),
    (start.forge, lambda d, p: d, "should be inverted"),
    (start.forge, lambda d, p: forge(d, p, sections=False), "still notices"),
    (start.forge, lambda d, p: forge(d, p, directory=False), "still notices"),
    (start.forge, lambda d, p: forge(d, p, name="side"), "should be inverted"),
    (start.forge, lambda d, p: forge(d, p + 1), "should be inverted"),
    (start.forge, lambda d, p: forge(d, p, mask=1), "should be inverted"),
    (start.forge, lambda d, p: d + b"x", "change bytes in place"),
    (start.forge, lambda d, p: list(d), "not bytes"),
    (start.forge, lambda d, p: 1 / 0, "ZeroDivisionError")])  # fmt: skip
def test_wrong_answers_are_told_why(check, answer, says):
    verdict = check(answer)
    assert not verdict and says in verdict.message


def test_a_stub_is_not_attempted_yet():
    def stub(*_):
        raise NotImplementedError

    for check in (start.compression_ratio, start.unread_inputs, start.forge):
        assert "not attempted yet" in repr(check(stub))
