"""What decides a study's outcome: stored whole, compared field by field."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import update

from budgetsweep.errors import ConfigError
from studies.database import tables
from studies.database.store import Store
from studies.database.study_settings import StudySettings, differences
from tests.support.tiny_studies import study_settings

BASE = {"device": "cpu", "max_lr": 1e-3, "data": {"source": "c4", "val_tokens": 512}}
OTHER: dict[str, Any] = {
    "backend": "hoffmann2022", "budget_flops": 2 * 10**30, "convention": "mac", "sampler": "law",
    "seed": 1, "pruning": True, "rungs": "0.1,1", "points_from": ("other",), "for_scale": 100.0,
    "space": {"parameters": {}}, "base": {**BASE, "max_lr": 2e-3}, "location": "runs.csv",
    "sizes_only": True,
}  # fmt: skip


def test_every_field_is_stored(store: Store) -> None:
    assert set(OTHER) == set(StudySettings.model_fields)
    settings = study_settings(**OTHER)
    assert store.create_study("s", settings).settings == settings


@pytest.mark.parametrize("name", [name for name in OTHER if name not in ("location", "sizes_only")])
def test_every_field_makes_another_study(name: str) -> None:
    before = study_settings(base=BASE)
    ((old, now),) = differences(
        before, study_settings(**{"base": BASE, name: OTHER[name]})
    ).values()
    assert old != now


def test_a_table_may_move() -> None:
    """It is known by its checksum, which is part of `backend`."""
    old, new = (
        study_settings(location=f"/{place}/runs.csv", base={"data": {"source": place}})
        for place in ("here", "there")
    )
    assert differences(old, new) == {}


def test_device_and_prepared_data_make_no_other_study() -> None:
    asked = {"max_lr": 1e-3, "data": {"source": "c4", "train_tokens": 2048}}
    assert differences(study_settings(base=BASE), study_settings(base=asked)) == {}
    asked["data"] = {"source": "demo"}
    assert list(differences(study_settings(base=BASE), study_settings(base=asked))) == [
        "run settings"
    ]


def test_a_setting_of_a_newer_version_is_one_line(store: Store, study: tables.Study) -> None:
    with store.engine.begin() as connection:
        connection.execute(update(tables.Study).values(other_settings={"base": {}, "moon": 1}))
    with pytest.raises(ConfigError, match="settings of study 's': unknown key 'moon'"):
        _ = store.study("s").settings
