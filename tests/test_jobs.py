"""Jobs in processes of their own: results come back, and when one process goes badly, none is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lilnetx_mini.errors import InputError, LilnetxError
from lilnetx_mini.jobs import run_jobs


def job(what, folder, position):
    Path(folder, str(os.getpid())).touch()
    if what == "fails":
        raise InputError("no such size")
    if what == "breaks":
        raise ZeroDivisionError("by zero")
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "hangs":
        time.sleep(600)
    return what, position


def gone(folder):
    """Whether no process that left its number there is alive."""
    for name in os.listdir(folder):
        try:
            os.kill(int(name), 0)
            return False
        except ProcessLookupError:
            pass
    return True


def test_results_come_as_they_finish_and_bars_use_as_many_lines_as_there_are_jobs(tmp_path):
    tasks = [(n, str(tmp_path)) for n in range(5)]
    done = dict(run_jobs(job, tasks, 2))
    assert {what: done[what, str(tmp_path)][0] for what in range(5)} == {n: n for n in range(5)}
    assert {position for _, position in done.values()} <= {0, 1}
    assert len(os.listdir(tmp_path)) == 5 and gone(tmp_path)


@pytest.mark.parametrize("tasks, at_a_time", [(["a"], 4), (["a", "b"], 1)])
def test_one_at_a_time_needs_no_other_process(tmp_path, tasks, at_a_time):
    done = list(run_jobs(job, [(t, str(tmp_path)) for t in tasks], at_a_time))
    assert [result for _, result in done] == [(t, 0) for t in tasks]
    assert os.listdir(tmp_path) == [str(os.getpid())]


@pytest.mark.parametrize("what, error, message", [
    ("fails", InputError, "no such size"), ("breaks", ZeroDivisionError, "by zero"), ("killed", LilnetxError, "was killed"),
])  # fmt: skip
def test_when_one_goes_badly_all_end(tmp_path, what, error, message):
    with pytest.raises(error, match=message) as caught:
        list(run_jobs(job, [("hangs", str(tmp_path)), (what, str(tmp_path))], 2))
    assert gone(tmp_path)
    assert what != "breaks" or "in job" in caught.value.__notes__[0]  # says where, across processes


def test_who_stops_asking_leaves_no_process(tmp_path):
    jobs = run_jobs(job, [("hangs", str(tmp_path)), ("quick", str(tmp_path))], 2)
    assert next(jobs)[1][0] == "quick"
    jobs.close()
    assert gone(tmp_path)


def test_when_the_main_process_is_killed_all_end(tmp_path):
    script = "import sys, test_jobs as t\nif __name__ == '__main__': list(t.run_jobs(t.job, [('hangs', sys.argv[1])] * 2, 2))"
    (tmp_path / "main.py").write_text(script)
    (tmp_path / "jobs").mkdir()
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    with subprocess.Popen([sys.executable, tmp_path / "main.py", tmp_path / "jobs"], env=os.environ | {"PYTHONPATH": paths}) as main:
        wait_until(lambda: len(os.listdir(tmp_path / "jobs")) == 2)
        main.kill()
    wait_until(lambda: gone(tmp_path / "jobs"))


def wait_until(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)
