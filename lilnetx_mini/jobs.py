"""Several jobs at a time, each in a process of its own: if one fails or is killed, or the main process is, all of them end."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait

from tqdm.auto import tqdm

from .errors import LilnetxError


def run_jobs(work: Callable, tasks: list[tuple], at_a_time: int) -> Iterator[tuple[tuple, object]]:
    """Every task with what ``work(*task, position)`` returns for it, as they finish; position: the line for its progress bar.

    A single job, or jobs one at a time, run in this process.

    raises  whatever `work` raised; LilnetxError if a process was killed
    """
    if min(len(tasks), at_a_time) == 1:
        for task in tasks:
            yield task, work(*task, 0)
        return
    context = get_context("spawn")  # a fork would copy locks that threads of torch and numba hold
    lock, waiting, running = context.RLock(), list(tasks), {}
    try:
        while waiting or running:
            while waiting and len(running) < at_a_time:
                task = waiting.pop(0)
                position = min(set(range(at_a_time)) - {place for _, _, place in running.values()})
                reader, writer = context.Pipe(duplex=False)
                process = context.Process(target=_job, args=(work, task, position, lock, writer))
                process.start()
                writer.close()  # the job has the only one left: when it is gone, so is the end of the pipe
                running[reader] = process, task, position
            for reader in wait(list(running)):
                try:
                    result = reader.recv()
                except EOFError:
                    what = "a training process was killed (out of memory?)"
                    raise LilnetxError(f"{what}; the same command continues from the last checkpoint") from None
                if isinstance(result, BaseException):
                    raise result
                process, task, _ = running.pop(reader)
                process.join()
                yield task, result
    finally:
        for process, _, _ in running.values():
            process.kill()  # what is on disk is whole at any time, see `lnx.write_atomic`
            process.join()


def _job(work: Callable, task: tuple, position: int, lock, writer: Connection) -> None:
    """In the job's process: send what `work` returns or raises."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal goes to all processes; the main one ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tqdm.set_lock(lock)  # bars share the terminal
    try:
        writer.send(work(*task, position))
    except BaseException as error:
        if not isinstance(error, LilnetxError):
            error.add_note(traceback.format_exc())  # where it happened; a traceback cannot be sent
        writer.send(error)


def _end_with_parent() -> None:
    parent_process().join()
    os._exit(1)
