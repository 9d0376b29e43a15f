"""What a user asks of a search."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import make_url

from budgetsweep.config import apply_overrides
from budgetsweep.errors import ConfigError
from model.flops import Convention
from studies.database.connection import storage_url
from studies.database.study_settings import StudySettings
from studies.database.tables import Study
from studies.execution.base import Backend
from studies.execution.local_pool import no_gpu_to_share
from studies.execution.messages import Workers
from studies.execution.training import Training
from studies.space.defaults import DEFAULT_RECIPE, default_space
from studies.space.rungs import Rungs
from studies.space.search_space import SamplerName, SearchSpace, space_from_dict
from trainer.config import ARCHITECTURES, TOKENIZER_VOCABULARIES
from trainer.data.config import DataConfig
from trainer.recipes import RECIPES

Keep = Literal["best", "all", "none"]


TRIALS_FOR_RUNGS = 12
"""Fewer trials have the whole budget each unless rungs are asked for: a law needs about as many."""


MAX_TRIALS_PER_GPU = 64

SHARED = (
    "budget_flops", "convention", "sampler", "seed", "pruning", "rungs", "points_from", "for_scale",
)  # fmt: skip
"""Settings that a study keeps under the same names (`StudySettings`)."""


def plans_rungs(sampler: str | None, trials: int) -> bool:
    """Whether a search that names no rungs is planned on several: only `law` compares them."""
    return sampler in (None, "law") and trials >= TRIALS_FOR_RUNGS


@dataclass(frozen=True)
class SearchSettings:
    """What the user asked for."""

    storage: str | Path = "budgetsweep.db"
    study: str | None = None
    """None: named after the data and the budget."""
    budget_flops: int = 10**15
    convention: Convention = Convention.NANOGPT
    space: SearchSpace | None = None
    """None: the built-in space for the budget."""
    sampler: SamplerName = "law"
    seed: int = 0
    trials: int = 32
    """Trials in the study in all, those of earlier sessions included."""
    hours: float | None = None
    """Stop this session after so long, runs in hand checkpointed."""
    total_flops: int | None = None
    """Start no trial that would take the study's spending past this, in its convention."""
    workers: int | None = None
    """Trials at a time; None: one, or what `trials_per_gpu` makes."""
    trials_per_gpu: int | None = None
    """Trials at a time on each GPU that the device setting allows, 1 to 64."""
    threads: int | None = None
    """Arithmetic threads of a worker; None: the cores divided among the workers."""
    device: str = "auto"
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: str = "gpt2"
    backend: Backend = field(default_factory=Training)
    """Where losses come from."""
    pruning: bool = False
    rungs: Rungs = field(default_factory=Rungs)
    """Budgets of the runs, as multiples of this one."""
    for_scale: float | None = None
    """Look for the best configuration at this multiple of the budget, not at the budget itself."""
    is_default_plan: bool = False
    """Nobody asked for these rungs and this scale: a study that exists keeps its own."""
    points_from: tuple[str, ...] = ()
    """Prior studies of the database whose complete runs are data points of the fit."""
    keep: Keep = "best"
    """Whose model.pt stays on disk."""
    overrides: tuple[str, ...] = ()
    """`key=value` settings of every run."""
    runs_dir: Path | None = None
    """None: `budgetsweep-runs` beside the SQLite file (elsewhere: in the working directory)."""
    cache_dir: Path | None = None

    def __post_init__(self) -> None:
        for name in ("trials", "workers", "threads"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ConfigError(f"--{name}: expected at least 1")
        self._check_sharing()
        if self.budget_flops < 1:
            raise ConfigError("--budget: expected a number of training FLOPs such as 1e15")
        if self.hours is not None and self.hours <= 0:
            raise ConfigError("--hours: expected more than 0")
        if self.for_scale is not None and not 1 < self.for_scale < math.inf:
            raise ConfigError("--for-scale: expected a number above 1, such as 100")
        if self.pruning and min(self.rungs.multiples) < 1:
            raise ConfigError(
                "--prune compares trials at equal shares of one budget; leave out --rungs below 1"
            )
        if self.sampler in ("tpe", "gp") and (self.for_scale or len(self.rungs.of_trials) > 1):
            raise ConfigError(
                f"--sampler {self.sampler} compares losses at one budget: leave out --for-scale "
                "and --rungs below 1, or take --sampler law"
            )
        self.backend.check(self)

    def _check_sharing(self) -> None:
        """Refuse a number of trials per GPU that cannot be had, where that is known already."""
        wanted = self.trials_per_gpu
        if wanted is None:
            return
        if not 1 <= wanted <= MAX_TRIALS_PER_GPU:
            raise ConfigError(f"--trials-per-gpu {wanted}: expected 1 to {MAX_TRIALS_PER_GPU}")
        if self.workers is not None:
            raise ConfigError(
                "--trials-per-gpu and --workers both say how many trials run at a time; give one"
            )
        if self.device in ("cpu", "mps"):
            raise no_gpu_to_share(wanted, self.device)

    @property
    def names_device(self) -> bool:
        """A device is asked for that a machine may lack."""
        return self.device not in ("auto", "cpu") or self.trials_per_gpu is not None

    @property
    def asked_workers(self) -> Workers:
        """What is asked of the executor."""
        return Workers(
            self.workers or 1, self.trials_per_gpu, self.device, self.threads, self.cache_dir
        )

    def continuing(self, study: Study) -> SearchSettings:
        """The same, with the rungs of a study that exists where none were asked for."""
        if not self.is_default_plan:
            return self
        return replace(self, rungs=study.settings.rungs, for_scale=study.settings.for_scale)

    @property
    def study_name(self) -> str:
        """The study's name: `c4-1e+15`, unless one is given."""
        if self.study is not None:
            return self.study
        source = self.study_data.source.rstrip("/").rsplit("/", 1)[-1].split("*")[0]
        name = "".join(c if c.isalnum() or c in "-_." else "-" for c in source.split(".")[0])
        return f"{name.strip('-') or 'data'}-{self.budget_flops:.3g}".replace("+", "")

    @property
    def study_data(self) -> DataConfig:
        """The data; those of a backend without any have its name."""
        name = self.backend.source_name
        return self.data if name is None else DataConfig(source=name)

    @property
    def folder(self) -> Path:
        """Where run folders lie."""
        return runs_folder(storage_url(self.storage), self.runs_dir) / self.study_name

    def base(self) -> dict[str, Any]:
        """Run settings that every trial shares, before the data are known.

        Raises:
            ConfigError: an override of what the space or the search itself decides.
        """
        base: dict[str, Any] = {
            "tokenizer_encoding": self.tokenizer,
            "device": self.device,
            "seed": self.seed,
            "data": self.study_data.model_dump(mode="json", exclude_none=True),
        }
        base |= self.backend.run_settings()
        return apply_overrides(base, self.overrides)

    def of_study(self, space: SearchSpace, base: dict[str, Any]) -> StudySettings:
        """What the study keeps of it, with what `resolved_space` and `base` give."""
        return StudySettings(
            **{name: getattr(self, name) for name in SHARED},
            backend=self.backend.name,
            space=space.to_dict(),
            base=base,
            location=self.backend.location,
            sizes_only=self.backend.sizes_only,
        )

    def resolved_space(self) -> SearchSpace:
        """The space given or the built-in one, without what `--set` fixes.

        Raises:
            ConfigError: no such tokenizer, architecture or recipe.
        """
        own = self.backend.own_space(self.budget_flops, self.rungs)
        if own is not None:
            return own
        n_vocab = TOKENIZER_VOCABULARIES.get(self.tokenizer)
        if n_vocab is None:
            known = ", ".join(TOKENIZER_VOCABULARIES)
            raise ConfigError(f"--tokenizer {self.tokenizer}: expected one of {known}")
        settings = apply_overrides({}, self.overrides)
        architecture = settings.get("architecture", "decoder")
        if architecture not in ARCHITECTURES:
            raise ConfigError(
                f"--set architecture={architecture}: expected one of {', '.join(ARCHITECTURES)}"
            )
        recipe = settings.get("recipe", DEFAULT_RECIPE)
        if recipe not in RECIPES:
            raise ConfigError(f"--set recipe={recipe}: expected one of {', '.join(RECIPES)}")
        space = self.space or default_space(
            self.budget_flops, n_vocab, self.convention, architecture, recipe, self.for_scale
        )
        data = space.to_dict()
        if "architecture" in settings:
            data["parameters"]["architecture"] = {"value": architecture}
        if settings.get("architecture", space.architecture) == "decoder":
            data["parameters"].setdefault("recipe", {"value": recipe})
        for override in self.overrides:
            name, separator, _ = override.partition("=")
            short = name.strip().removeprefix("model_config.")
            if separator and short in data["parameters"]:
                data["parameters"][short] = apply_overrides(
                    {}, [f"v={override.partition('=')[2]}"]
                )["v"]
        return space_from_dict(data, "search space")


def runs_folder(url: str, runs_dir: Path | None) -> Path:
    """The folder of all run folders of a storage."""
    if runs_dir is not None:
        return runs_dir.absolute()
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        return Path(parsed.database).absolute().parent / "budgetsweep-runs"
    return Path.cwd() / "budgetsweep-runs"
