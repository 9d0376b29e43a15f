"""The text of a study: prepared once, then exactly the same tokens for ever."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from budgetsweep.config import parse
from budgetsweep.constraint import Limits
from budgetsweep.errors import DataError
from studies.database.store import Store
from studies.database.tables import Study
from studies.planning import (
    PLAN_SAMPLES,
    sample_space,
    wanted_train_tokens,
    wanted_val_pairs,
    wanted_val_tokens,
)
from studies.simulation.data import SimulatedData, simulated_data
from studies.simulation.replay import table_of
from studies.simulation.worlds import world_of
from studies.space.search_space import SearchSpace
from trainer.data.config import DataConfig

if TYPE_CHECKING:
    from trainer.data.prepare import PrepareProgress
    from trainer.data.shards.tokens import TokenData


def fix_data(
    store: Store,
    study: Study,
    space: SearchSpace,
    *,
    cache_dir: Path | None,
    on_prepare: Callable[[PrepareProgress], None] | None,
) -> tuple[Study, TokenData | SimulatedData]:
    """Prepare a study's data, once; afterwards open exactly the same tokens.

    A simulated study has no text: what stands for it is its world.

    The first call decides: training tokens, what the cheapest shape of the space can use in one
    pass; validation tokens, what a tenth of the shortest run's time pays for. Both are written
    into the study's run settings.

    Returns:
        The study's row, as it is now, and its tokens.

    Raises:
        DataError: text cannot be had, or is not what the study began with.
    """
    base = dict(study.settings.base)
    if world_of(base) is not None:
        return _fix_world(store, study)
    from trainer.data.pairs import PairIndex
    from trainer.data.prepare import open_prepared, prepare

    config = parse(DataConfig, base["data"], "data")
    tokenizer = base["tokenizer_encoding"]
    if study.val_checksum is None:
        limits = Limits(study.budget_flops, study.convention)  # type: ignore[arg-type]
        sample = sample_space(space, base, limits, PLAN_SAMPLES, study.seed)
        train = wanted_train_tokens(sample)
        pairs = space.architecture == "encoder-decoder"
        val = config.val_tokens or (None if pairs else wanted_val_tokens(sample))
        prepared = prepare(
            config,
            tokenizer,
            train_tokens=train,
            val_tokens=val,
            cache_dir=cache_dir,
            on_progress=on_prepare,
        )
        if pairs:
            prepared.require_pairs()
        if val is None:
            val = PairIndex(prepared.val, prepared.eot).tokens_of(wanted_val_pairs(sample))
        fixed = config.fixed_to(prepared, train, val)
        data = open_prepared(fixed, tokenizer, cache_dir)
        base["data"] = fixed.model_dump(mode="json", exclude_none=True)
        store.set_study_data(
            study.id,
            description=data.description,
            data_checksum=data.data_checksum,
            val_checksum=data.val_checksum,
            val_tokens=len(data.val),
            bytes_per_token=data.bytes_per_token,
        )
        store.update_settings(study.id, study.settings.model_copy(update={"base": base}))
        return store.study(study.name), data
    prepare(
        config,
        tokenizer,
        train_tokens=config.train_tokens,
        val_tokens=config.val_tokens,
        cache_dir=cache_dir,
        on_progress=on_prepare,
    )
    data = open_prepared(config, tokenizer, cache_dir)
    check_same_data(study, data)
    return study, data


def stand_in(study: Study) -> SimulatedData:
    """What stands for the text of a study that nobody trains: its world, or its table of runs.

    Raises:
        DataError: the table is gone or has changed.
    """
    table = table_of(study)
    if table is not None:
        return SimulatedData(table)
    return simulated_data(study.settings.base["world"])


def _fix_world(store: Store, study: Study) -> tuple[Study, SimulatedData]:
    data = stand_in(study)
    if study.val_checksum is None:
        store.set_study_data(
            study.id,
            description=data.description,
            data_checksum=data.data_checksum,
            val_checksum=data.val_checksum,
            val_tokens=None,
            bytes_per_token=None,
        )
        return store.study(study.name), data
    check_same_data(study, data)
    return study, data


def check_same_data(study: Study, data: TokenData | SimulatedData) -> None:
    """Refuse to go on with other text than the study began with.

    Raises:
        DataError: the validation or training tokens are not those of the study, or the constants
            of its simulated world are not.
    """
    if isinstance(data, SimulatedData) and data.val_checksum != study.val_checksum:
        raise DataError(
            f"the simulated world of study {study.name!r} has other constants in this version, so "
            "losses could not be compared; begin a new --study"
        )
    if data.val_checksum != study.val_checksum:
        raise DataError(
            f"the validation text is not that of study {study.name!r} any more (its checksum "
            "differs), so losses could not be compared; restore the data or begin a new --study"
        )
    if data.data_checksum != study.data_checksum:
        raise DataError(
            f"the training text is not that of study {study.name!r} any more (its checksum "
            "differs); restore the data or begin a new --study"
        )
