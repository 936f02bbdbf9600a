"""Workers for independent jobs on one processor, one thread each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from snipnb._engine.propagation import Scratch

Job = TypeVar("Job")
Result = TypeVar("Result")


class Crew:
    """Workers that do independent jobs at once, each on one processor thread with memory of its own.

    A job is a long series of operations on arrays that fit the caches. Several jobs with one thread each wait less than
    several threads that share each operation. With one worker, the calling thread does the jobs.
    """

    def __init__(self, size: int) -> None:
        self.size, self.scratch, self._threads = size, Scratch(), torch.get_num_threads()
        self._own = threading.local()
        self._pool = ThreadPoolExecutor(size, initializer=self._begin) if size > 1 else None

    def _begin(self) -> None:
        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        self._own.scratch = Scratch()

    def map(self, work: Callable[[Job, Scratch], Result], jobs: Sequence[Job]) -> Iterable[Result]:
        """Results in the order of the jobs."""
        if self._pool is None:
            return (work(job, self.scratch) for job in jobs)
        return self._pool.map(lambda job: work(job, self._own.scratch), jobs)

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            torch.set_num_threads(self._threads)  # the workers' setting would otherwise be the default of later threads
