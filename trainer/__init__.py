"""One training run: data, optimiser, loop, checkpoints, evaluation. It knows nothing of studies.

The training functions are loaded when they are first asked for, so that `import trainer.config`
stays free of torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.course import (
        compute_language_modeling_loss,
        evaluate,
        random_batch_sampler,
        sequential_batch_sampler,
        train,
    )
    from trainer.optim.schedules import cosine_lr_schedule

__all__ = [
    "compute_language_modeling_loss",
    "cosine_lr_schedule",
    "evaluate",
    "random_batch_sampler",
    "sequential_batch_sampler",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "trainer.optim.schedules" if name == "cosine_lr_schedule" else "trainer.course"
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
