"""Runs that are trained: on this machine's workers, on data prepared once and then kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from budgetsweep.config import parse
from budgetsweep.constraint import Limits
from budgetsweep.errors import DataError
from studies.database.tables import Study
from studies.execution.base import Backend, OnPrepare
from studies.execution.local_pool import LocalPool
from studies.execution.messages import Workers
from studies.space.sample import (
    PLAN_SAMPLES,
    sample_space,
    wanted_train_tokens,
    wanted_validation,
)
from studies.space.search_space import SearchSpace
from trainer.config import RunConfig
from trainer.data.config import DataConfig
from trainer.data.facts import DataFacts
from trainer.data.prepare import open_prepared, prepare

if TYPE_CHECKING:
    from trainer.data.shards.tokens import TokenData


class Training(Backend):
    """Losses of models that are trained."""

    name = "training"

    def executor(self, workers: Workers, *, for_promotion: bool = False) -> LocalPool:
        """Worker processes of this machine, the first one on the way up."""
        del for_promotion
        return LocalPool(workers)

    def fix_data(
        self, study: Study, space: SearchSpace, workers: Workers, on_prepare: OnPrepare
    ) -> tuple[Mapping[str, Any], DataFacts]:
        """Prepare a study's data, once; afterwards open exactly the same tokens.

        The first call decides: training tokens, what the cheapest shape of the space can use in one
        pass; validation tokens, what a tenth of the shortest run's time pays for.
        """
        base = study.settings.base
        config, tokenizer = parse(DataConfig, base["data"], "data"), base["tokenizer_encoding"]
        if study.val_checksum is None:
            config = self._fixed(study, space, config, workers, on_prepare)
        else:
            prepare(
                config, tokenizer, train_tokens=config.train_tokens, val_tokens=config.val_tokens,
                cache_dir=workers.cache_dir, on_progress=on_prepare,
            )  # fmt: skip
        data = open_prepared(config, tokenizer, workers.cache_dir)
        return config.model_dump(mode="json", exclude_none=True), data.facts()

    def _fixed(
        self,
        study: Study,
        space: SearchSpace,
        config: DataConfig,
        workers: Workers,
        on_prepare: OnPrepare,
    ) -> DataConfig:
        """The numbers of tokens that all runs of a new study have, prepared."""
        from trainer.data.pairs import PairIndex

        base = study.settings.base
        limits = Limits(study.budget_flops, study.convention)
        sample = sample_space(space, base, limits, PLAN_SAMPLES, study.seed)
        train, pairs = wanted_train_tokens(sample), space.architecture == "encoder-decoder"
        val = config.val_tokens or (None if pairs else wanted_validation(sample, pairs=False))
        prepared = prepare(
            config, base["tokenizer_encoding"], train_tokens=train, val_tokens=val,
            cache_dir=workers.cache_dir, on_progress=on_prepare,
        )  # fmt: skip
        if pairs:
            prepared.require_pairs()
        if val is None:
            val = PairIndex(prepared.val, prepared.eot).tokens_of(
                wanted_validation(sample, pairs=True)
            )
        return config.fixed_to(prepared, train, val)

    def promotion_data(
        self,
        study: Study,
        config: RunConfig,
        train_tokens: int | None,
        workers: Workers,
        on_prepare: OnPrepare,
    ) -> tuple[RunConfig, DataFacts]:
        """The study's data with as many training tokens as the run can use, prepared."""
        data: TokenData = prepare(
            config.data, config.tokenizer_encoding, train_tokens=train_tokens,
            val_tokens=study.val_tokens, cache_dir=workers.cache_dir, on_progress=on_prepare,
        )  # fmt: skip
        fixed = config.data.fixed_to(data, train_tokens, study.val_tokens)
        opened = open_prepared(fixed, config.tokenizer_encoding, workers.cache_dir)
        return config.with_changes(data=fixed), opened.facts()


def check_same_data(study: Study, facts: DataFacts) -> None:
    """Refuse to go on with other data than the study began with.

    Raises:
        DataError: the validation or training data are not those of the study.
    """
    for split, now, before in (
        ("validation", facts.val_checksum, study.val_checksum),
        ("training", facts.data_checksum, study.data_checksum),
    ):
        if now != before:
            raise DataError(
                f"the {split} data are not those of study {study.name!r} any more (their checksum "
                "differs), so losses could not be compared; restore them or begin a new --study"
            )
