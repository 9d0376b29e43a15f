"""The FLOP meter of a run: refuses a step that the budget cannot pay. No torch.

Two counts, not to be confused. The *history* of a run is the steps that its weights have seen; it
never passes the budget. The *executed* steps are all that were computed in any attempt, those
lost to a kill and recomputed included; they are what was really spent. They live in a memory-mapped
file of eight bytes, `meter.bin`: counting one costs a store, and the count survives SIGKILL
because the mapped page belongs to the kernel.
"""

from __future__ import annotations

import logging
import mmap
import os
import sys
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Self

from budgetsweep.errors import BudgetExceeded, CheckpointError
from budgetsweep.files import file_lock
from trainer.checkpoints.checkpoint import cannot_write, checkpoint_files

METER_NAME = "meter.bin"
LOCK_NAME = "meter.lock"
_MARK = 0xB5ED << 48  # upper 16 bits of the count: tells it from zeros and garbage
_COUNT = (1 << 48) - 1

logger = logging.getLogger("budgetsweep")


def read_executed_steps(run_dir: Path) -> int:
    """Optimiser steps computed in all attempts at the run in `run_dir`; 0 before the first.

    Where meter.bin is damaged: a warning, and the step of the newest checkpoint, which is the
    least that was executed.
    """
    path = run_dir / METER_NAME
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        data = b""
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    steps = _decode(data)
    if steps is not None:
        return steps
    least = max((step for step, _ in checkpoint_files(run_dir)), default=0)
    if data or least:
        logger.warning(
            "%s is damaged; counting the %d executed steps that the checkpoints show", path, least
        )
    return least


class FlopMeter:
    """Charges each step before it is computed; a context manager that owns the run's folder."""

    def __init__(self, run_dir: Path, flops_per_step: int, budget_flops: int) -> None:
        """Open or create the counter in `run_dir`, in the run's convention.

        Raises:
            CheckpointError: the file cannot be written, or another process holds it.
        """
        self.flops_per_step = flops_per_step
        self.budget_flops = budget_flops
        path = run_dir / METER_NAME
        with ExitStack() as opened:
            try:
                opened.enter_context(_owned(run_dir))
                handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
                opened.callback(os.close, handle)
                steps = read_executed_steps(run_dir)
                # Written before it is mapped: on a full disk this fails here and not with SIGBUS.
                os.ftruncate(handle, 8)
                os.pwrite(handle, (_MARK | steps).to_bytes(8, sys.byteorder), 0)
                self._map = opened.enter_context(mmap.mmap(handle, 8))
            except OSError as error:
                raise cannot_write(path, error) from error
            self._opened = opened.pop_all()
        self._counter = memoryview(self._map).cast("Q")

    @property
    def executed_steps(self) -> int:
        """Optimiser steps computed in all attempts."""
        return self._counter[0] & _COUNT

    def charge(self, step: int) -> None:
        """Charge the step that follows on `step` steps of history, and count it as executed.

        Raises:
            BudgetExceeded: the budget cannot pay it. A defect of the caller, who planned it.
        """
        flops = (step + 1) * self.flops_per_step
        if flops > self.budget_flops:
            raise BudgetExceeded(
                f"step {step + 1} would bring the run to {flops:.6g} training FLOPs of "
                f"{self.budget_flops:.6g}"
            )
        self._counter[0] += 1  # one aligned store: a kill leaves the old count or the new one

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._counter.release()
        self._opened.close()


def _owned(run_dir: Path) -> AbstractContextManager[object]:
    """Keep a second process out of the folder."""
    try:
        return file_lock(run_dir / LOCK_NAME, seconds=0)
    except TimeoutError as error:
        raise CheckpointError(
            f"{run_dir}: another process is training there; wait for it to end, or give "
            "another output_dir"
        ) from error


def _decode(data: bytes) -> int | None:
    value = int.from_bytes(data, sys.byteorder)
    if len(data) != 8 or value & ~_COUNT != _MARK:
        return None
    return value & _COUNT
