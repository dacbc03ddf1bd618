"""Two processes that train together against one that takes the same two half batches one after the other."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_options import SMALL
from torch import nn

from lilnetx_mini import InputError
from lilnetx_mini.nn import latency
from lilnetx_mini.nn.train import Run

PRUNE = {"method": "prune", "then": "lilnetx", "target_flops": 0.6, "init": "from_weights"}
TESTS = Path(__file__).parent
SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import test_distributed as t
t.be_one_of_two(sys.argv[2])
"""


def bare() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4))


def make(kind: str, folder: str, accumulate: int) -> Run:
    """kind: "normal", "smooth" (no rounding, no norm layers)."""
    recipe = replace(SMALL, epochs=20, accumulate=accumulate, flip=1, cutout=2, lam_rate=0.1, lam_group=0.1, ramp=0.0)
    run = Run(replace(recipe, model=bare) if kind == "smooth" else recipe, 0, folder)
    if kind == "smooth":
        for g in run.compressor.groups:
            g.quantised = lambda z: z
    return run


def steps(run: Run, count: int) -> dict:
    """Take some steps; the gradients of the first, all losses (of this process's images, per image), the parameters at the end."""
    losses, gradients, taken = [], [], 0
    run.model.train()
    while taken < count:
        order = torch.randperm(len(run.source), generator=run.generator)
        for step in run.source.steps(order, 0, 0, run.generator):
            run._schedule(40 + taken)  # past the start, where the learning rate is not what matters
            run._total.zero_()
            run._take(step)
            total = run.world.add([float(run._total), sum(len(y) for _, y in step)], run.device)
            losses.append(total[0] / total[1])
            gradients = gradients or [p.grad.clone() for p in run.model.parameters()]
            taken += 1
            if taken == count:
                break
    return {"gradients": gradients, "losses": losses, "parameters": [p.detach() for p in run.model.parameters()]}


def be_one_of_two(folder: str) -> None:
    """What each of two processes does: 50 steps of either kind, and the second half of a run that is there."""
    found = {}
    for kind in ("normal", "smooth"):
        run = make(kind, f"{folder}/{kind}", 1)
        found[kind] = steps(run, 50)
    resumed = Run(replace(SMALL, epochs=4), 0, f"{folder}/resumed")
    assert resumed.resume() and resumed.epoch == 2
    resumed.fit(progress=False)
    pruned = Run(replace(SMALL, epochs=4, **PRUNE), 0, f"{folder}/pruned")
    pruned.fit(progress=False)
    found["pruned"] = {"parameters": [p.detach() for p in pruned.model.parameters()], "left": pruned.metrics[-1]["flops_left"]}
    torch.save(found | {"metrics": str(resumed.metrics)}, f"{folder}/rank{run.world.rank}.pt")


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> Run:
    """The first half of a run of four epochs, in one process."""
    half = Run(replace(SMALL, epochs=4), 0, tmp_path_factory.mktemp("two") / "resumed")
    while half.epoch < 2:
        loss = half._epoch()
        half.epoch += 1
        half.metrics.append(half._line(loss))
    half._save()
    return half


@pytest.fixture(scope="module")
def ranks(half) -> list[dict]:
    """What each of two processes found."""
    folder = half.folder.parent
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    command = [sys.executable, "-c", SCRIPT, str(TESTS), str(folder)]
    both = [subprocess.Popen(command, env={**shared, "RANK": str(r), "LOCAL_RANK": str(r)}) for r in (0, 1)]
    assert [p.wait(timeout=200) for p in both] == [0, 0]
    return [torch.load(folder / f"rank{r}.pt", weights_only=True) for r in (0, 1)]


def test_gradients_are_those_of_one_process_and_ranks_stay_equal_to_the_bit(tmp_path, ranks):
    alone, (first, second) = steps(make("normal", str(tmp_path), 2), 1), (r["normal"] for r in ranks)
    for a, b in zip(alone["gradients"], first["gradients"], strict=True):
        assert (a - b).abs().max() <= 1e-5 * a.abs().max() + 1e-12
    assert all(torch.equal(a, b) for a, b in zip(first["parameters"], second["parameters"], strict=True))
    assert alone["losses"][0] == pytest.approx(first["losses"][0], rel=1e-6)


def test_losses_are_those_of_one_process(tmp_path, ranks):
    alone = steps(make("smooth", str(tmp_path), 2), 50)
    assert len(alone["losses"]) == 50 and alone["losses"][-1] < 0.85 * alone["losses"][0]
    assert ranks[0]["smooth"]["losses"] == pytest.approx(alone["losses"], rel=1e-4)


def test_a_run_continues_on_another_number_of_processes(tmp_path, half, ranks):
    assert ranks[0]["metrics"] == ranks[1]["metrics"] and ranks[0]["metrics"].count("'epoch'") == 4
    again = Run(replace(SMALL, epochs=4), 0, half.folder)
    assert again.resume() and again.epoch == 4 and again.metrics[:2] == half.metrics
    whole = Run(replace(SMALL, epochs=4), 0, tmp_path).fit(progress=False)
    assert again.metrics[-1]["loss"] == pytest.approx(whole.metrics[-1]["loss"], rel=0.3)


def test_both_processes_cut_the_same_channels_and_train_the_same_smaller_network(ranks):
    pytest.importorskip("torch_pruning")
    first, second = (r["pruned"] for r in ranks)
    assert 0.3 < first["left"] <= 0.6 and first["left"] == second["left"]
    assert all(torch.equal(a, b) for a, b in zip(first["parameters"], second["parameters"], strict=True))


def test_latencies_are_not_measured_by_several_processes_at_once(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="would time one another"):
        latency.measure(bare(), torch.zeros(1, 1, 8, 8), "torch")


def test_torchrun_trains_from_the_command_line(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "lilnetx_mini", "train"]
    settings = ["digits", "--set", "epochs=1", "--set", "images=128", "--out", tmp_path / "out", "--quiet", "--no-plain"]
    done = subprocess.run([*command, *map(str, settings)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("bytes of each seed") == 1 and (tmp_path / "out" / "model.lnx").stat().st_size > 1000
