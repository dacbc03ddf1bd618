"""Writes tests/golden/ anew from a trained digits file: only for a deliberate change of the format.

lilnetx train digits --no-plain && python tests/make_golden.py runs/digits/model.lnx
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from lilnetx_mini import data, lnx, runtime

GOLDEN = Path(__file__).parent / "golden"


def fingerprint(model: lnx.Model) -> dict:
    """What must never change: hashes of the integers and of the decoded tensors' bytes."""
    ints = hashlib.sha256(b"".join(np.ascontiguousarray(g.q, "<i2").tobytes() for g in model.groups)).hexdigest()
    tensors = hashlib.sha256(b"".join(np.ascontiguousarray(t, "<f4").tobytes() for t in model.tensors())).hexdigest()
    return {"integers": ints, "tensors": tensors, "names": model.tensor_names(), "nodes": len(model.graph.nodes)}


def main(path: str) -> None:
    """Copy the file and record what it decodes to."""
    GOLDEN.mkdir(exist_ok=True)
    (GOLDEN / "digits.lnx").write_bytes(Path(path).read_bytes())
    test = data.digits().test
    logits = runtime.Network.load(path)(test.x)
    np.savez_compressed(GOLDEN / "digits.npz", x=test.x.astype(np.float16), y=test.y.astype(np.uint8))
    record = fingerprint(lnx.read(path)) | {
        "classes": logits.argmax(1).tolist(),
        "first_logits": [round(float(v), 4) for v in logits[0]],
    }
    (GOLDEN / "digits.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main(sys.argv[1])
