"""One training run, from its configuration to its result, wherever it was interrupted."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import torch

from budgetsweep.errors import NonFiniteLoss
from trainer.checkpoints.artefacts import read_finished
from trainer.config import RunConfig
from trainer.data.shards.tokens import TokenData
from trainer.driver import RunEvents
from trainer.events import Command, RunStatus
from trainer.hardware.device import (
    flushing_denormals,
    is_out_of_memory,
    random_state,
    set_random_state,
    torch_device,
)
from trainer.run_state import RunState


def train_run(config: RunConfig, data: TokenData, run_dir: Path) -> RunEvents:
    """Train a filled configuration, from its latest checkpoint if `run_dir` has one.

    A generator of events: `Progress` about once a second, `Point` at num_reports and num_evals
    equal fractions of the run (those of earlier attempts first, equal, in case they were lost),
    `Checkpointed`. The caller may send "prune" or "interrupt" in answer to any of them; the run
    obeys before its next step, "interrupt" after a checkpoint. `StopIteration.value` is the result:

    * complete: model.pt, config.yaml, curve.csv and eval.json are written, checkpoints removed.
      A folder whose run is complete gives its points and its result at once;
    * pruned: checkpoints removed;
    * interrupted: the same call continues;
    * failed, with the reason: loss, gradient or validation loss not finite; out of memory.

    The caller's random state is the same before and after, and while it handles an event.

    Raises:
        CheckpointError: the folder cannot be written (disk full), belongs to another
            configuration or is in use by another process.
        DataError: the text is too short.
        ConfigError: no such device, or the configuration is not filled.
    """
    finished = read_finished(run_dir, config)
    if finished is not None:
        for point in finished.points:  # its caller may have been killed before it saw them
            _ = yield point  # a verdict comes too late
        return finished.result
    device = torch_device(config.device)
    return (yield from _isolated(_train(config, data, run_dir, device), device))


def _train(config: RunConfig, data: TokenData, run_dir: Path, device: torch.device) -> RunEvents:
    run = RunState(config, data, run_dir, device)
    command: Command | None = None
    with run.meter:
        try:
            run.start()
            for point in list(run.points):  # of earlier attempts: the caller may have been killed
                command = (yield point) or command
            while True:
                if run.evaluation_is_due():
                    run.evaluate()
                if run.point_is_due():
                    command = (yield run.point()) or command
                elif run.progress_is_due():
                    command = (yield run.progress()) or command
                if command == "interrupt" or run.checkpoint_is_due():
                    command = (yield run.save()) or command
                if command is not None or run.step == config.steps:
                    return run.finish(command)
                if run.trim_is_due():
                    run.trim_heap()
                run.meter.charge(run.step)
                run.train_step()
        except (NonFiniteLoss, FloatingPointError) as error:
            return run.result(RunStatus.FAILED, str(error))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return run.result(
                RunStatus.FAILED, f"out of memory after step {run.step}: {_line(error)}"
            )
        finally:
            run.forget()


def _isolated(run: RunEvents, device: torch.device) -> RunEvents:
    """Give `run` a random state and treatment of denormals of its own; its caller's come back."""
    ours = random_state(device)
    command: Command | None = None
    with closing(run):
        while True:
            theirs = random_state(device)
            set_random_state(device, ours)
            try:
                with flushing_denormals():
                    event = run.send(command)
            except StopIteration as stop:
                return stop.value
            finally:
                ours = random_state(device)
                set_random_state(device, theirs)
            command = yield event


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else "no memory left"
