"""Threads that each run whole operations, in place of operations that each run on many threads.

An operation that is split over OpenMP's threads ends when the last of them wakes up and is done;
a training step has a thousand of them. Here the step is cut into a few long tasks, one a thread,
whose operations use that thread alone: two of them wait for each other a few times per step.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Concatenate, ParamSpec, TypeVar

import torch

M = TypeVar("M")
P = ParamSpec("P")
T = TypeVar("T")

MAX_TEAM = 4
"""Most threads of a team; with more of them the operations are split instead. *Assumption*: two
were measured."""


def team_size(kind: str) -> int:
    """How many tasks `run_on_threads` can run at once: PyTorch's threads on a `cpu`, else 1.

    It is 1 inside a task, while torch.compile traces, and where operations are watched
    (`torch.utils.flop_counter`), which follows no other threads.
    """
    if kind != "cpu" or torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return 1
    threads = torch.get_num_threads()
    return threads if threads <= MAX_TEAM else 1


def run_on_threads(
    function: Callable[Concatenate[M, P], T],
    members: Sequence[M],
    *args: P.args,
    **kwargs: P.kwargs,
) -> list[T]:
    """`function(member, ...)` of each member side by side, on threads with one-threaded operations.

    Results come in the order of the members. Nothing there computes gradients or is in autocast,
    unless the function asks for it; the treatment of denormals is the caller's. All have ended
    when this returns or raises what the first failing member raised. A single member is served by
    the caller's own thread.
    """
    if len(members) == 1:
        return [function(members[0], *args, **kwargs)]
    flush = sys.float_info.min / 2 == 0.0  # the processor's flag can be seen, not asked for

    def run(member: M) -> T:
        torch.set_flush_denormal(flush)
        with torch.no_grad():
            return function(member, *args, **kwargs)

    team = _team(os.getpid(), len(members))
    futures = [team.submit(run, member) for member in members]
    try:
        return [future.result() for future in futures]
    finally:
        wait(futures)


@functools.cache
def _team(process: int, n: int) -> ThreadPoolExecutor:  # noqa: ARG001 - a fork has no threads
    """So many threads whose operations use one thread each."""
    threads = torch.get_num_threads()
    team = ThreadPoolExecutor(n, thread_name_prefix="team")
    all_there = threading.Barrier(n)

    def alone() -> None:
        # What set_num_threads sets for this thread stays when the caller sets its own again; asking
        # for it keeps PyTorch from taking the caller's at the first operation.
        torch.set_num_threads(1)
        torch.get_num_threads()
        all_there.wait()

    try:
        wait([team.submit(alone) for _ in range(n)])
    finally:
        torch.set_num_threads(threads)
    return team
