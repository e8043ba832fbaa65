"""Processes that work at numbered pieces of a job, and may die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Protocol

import torch

__all__ = ["Work", "Workers"]

_MOST_DEATHS = 20  # Workers that may die before a job gives up.
_METHOD = "forkserver" if sys.platform == "linux" else "spawn"


class Work(Protocol):
    """Does what a job consists of; it is sent to every worker once."""

    def do(self, step: str, number: int) -> None:
        """Does a numbered piece of a step, which may have been done before, in full or in part."""


class Workers:
    """Gives work to processes, each with one thread, and starts others where some die.

    On Linux workers are forks of a process that has imported the library and nothing else happens
    in, and that lives as long as the caller's: another worker costs no import.

    Args:
        number: Number of processes; 0 for none but the caller's.
        work: The work.

    Attributes:
        processes: The processes by the pipe that leads to them.
    """

    def __init__(self, number: int, work: Work) -> None:
        self.work = work
        self.deaths = 0
        self.processes: dict[Connection, multiprocessing.Process] = {}
        for _ in range(number):
            self._start()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        for pipe, process in self.processes.items():
            pipe.close()  # Ends a worker that waits for work.
            if kind is not None:
                process.terminate()
        for process in self.processes.values():
            process.join()

    def _start(self) -> None:
        # A fork of the caller, which may have threads, may hang.
        context = multiprocessing.get_context(_METHOD)
        if _METHOD == "forkserver":
            context.set_forkserver_preload([type(self.work).__module__, __name__])
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(self.work, there), daemon=True)
        process.start()
        there.close()
        self.processes[here] = process

    def run(self, step: str, numbers: Sequence[int]) -> Iterator[int]:
        """Does a step for each number, and yields the numbers that are done.

        Raises:
            RuntimeError: If workers die again and again.

        Warns:
            UserWarning: If a worker has died.
        """
        if not self.processes:
            for number in numbers:
                self.work.do(step, number)
                yield number
            return
        left, busy = list(reversed(numbers)), {}
        while left or busy:
            for pipe in [pipe for pipe in self.processes if pipe not in busy][: len(left)]:
                busy[pipe] = left.pop()
                try:
                    pipe.send((step, busy[pipe]))
                except OSError:
                    left.append(self._bury(pipe, busy))
            for pipe in wait(list(busy)):
                try:
                    error = pipe.recv()
                except (EOFError, OSError):
                    left.append(self._bury(pipe, busy))
                    continue
                if error is not None:
                    raise error
                yield busy.pop(pipe)

    def _bury(self, pipe: Connection, busy: dict[Connection, int]) -> int:
        """Replaces a worker that has died, and returns what it was working at."""
        process = self.processes.pop(pipe)
        pipe.close()
        process.join()
        self.deaths += 1
        if self.deaths > _MOST_DEATHS:
            raise RuntimeError(
                f"workers must live, and {self.deaths} have died, the last one with exit code "
                f"{process.exitcode}: is there enough memory? What is finished stays"
            )
        warnings.warn(
            f"a worker has died with exit code {process.exitcode}, and its work is done again",
            stacklevel=4,
        )
        self._start()
        return busy.pop(pipe)


def _serve(work: Work, pipe: Connection) -> None:
    """Does in a process of its own what is asked through a pipe, until nobody is there to ask."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one.
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    while True:
        try:
            step, number = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            work.do(step, number)
        except Exception as error:
            pipe.send(error)
        else:
            pipe.send(None)
