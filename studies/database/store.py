"""The only writer of a study database.

Every method is one committed transaction: whatever is killed, at whatever byte, the database
holds either all of a change or nothing of it. Errors that a user can fix (locked, full disk,
damaged file) are `StudyError`s of one line; what no study or run can do is a defect of the caller,
`IllegalChangeError`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from budgetsweep.errors import BudgetExceeded, StudyError
from model.flops import Convention
from studies.database import leases, lifecycle, provenance
from studies.database.connection import BUSY_SECONDS, open_engine, storage_url
from studies.database.ledger import Amount
from studies.database.lifecycle import RunWriter
from studies.database.migrations import migrate
from studies.database.reader import IllegalChangeError
from studies.database.run_kind import RunKind
from studies.database.study_settings import StudySettings
from studies.database.tables import Fit, Prediction, Rejection, Run, Study, settings_columns
from trainer.config import RunConfig
from trainer.data.facts import DataFacts
from trainer.events import RunStatus
from trainer.identity import CountsAs, Identity, digest, identity, marked

if TYPE_CHECKING:
    from budgetsweep.constraint import Rejected

__all__ = ["IllegalChangeError", "Store", "config_hash"]


def config_hash(config: RunConfig) -> str:
    """Equal for filled configurations that differ in the seed alone.

    Settings that are two ways to say one thing (a warm-up in steps or as a share) count as what
    they come to.

    Raises:
        ConfigError: the configuration's number of steps is still open.
    """
    _ = config.steps  # raises
    data = identity(RunConfig, config.to_dict(), Identity.RESULT)
    for name, mark in marked(RunConfig, CountsAs):
        data.pop(name, None)
        data[mark.name] = getattr(config, mark.name)
    return digest(data)


class Store(RunWriter):
    """A study database, open for writing. Safe to use from several threads."""

    @classmethod
    def open(
        cls, storage: str | Path, *, create: bool = False, busy_seconds: float = BUSY_SECONDS
    ) -> Store:
        """Open a database, a file or a URL, and bring its tables up to date.

        Raises:
            StudyError: missing, foreign, damaged, locked, not writable or newer than this program.
        """
        engine = open_engine(storage_url(storage), create=create, busy_seconds=busy_seconds)
        try:
            migrate(engine)
        except BaseException:
            engine.dispose()
            raise
        return cls(engine)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Studies ------------------------------------------------------------------------------------

    def create_study(self, name: str, settings: StudySettings) -> Study:
        """Enter a new study.

        Raises:
            StudyError: the name is taken, empty or longer than 200 characters.
        """
        if not name.strip() or len(name) > 200 or not name.isprintable():
            raise StudyError(f"study name {name[:40]!r}: expected 1 to 200 printable characters")
        try:
            with self._write() as connection:
                columns = settings_columns(settings)
                connection.execute(
                    insert(Study).values(name=name, created_utc=lifecycle.now(), **columns)
                )
        except IntegrityError as error:
            raise StudyError(
                f"{self._where} already holds a study {name!r}; resume it or give another name"
            ) from error
        return self.study(name)

    def set_study_data(self, study_id: int, facts: DataFacts, settings: StudySettings) -> None:
        """Record which data the study trains and is measured on, and the settings that fix them."""
        self._update_study(
            study_id,
            **settings_columns(settings),
            data_description=facts.description,
            data_checksum=facts.data_checksum,
            val_checksum=facts.val_checksum,
            val_tokens=facts.val_tokens,
            bytes_per_token=facts.bytes_per_token,
        )

    def update_settings(self, study_id: int, settings: StudySettings) -> None:
        """Replace the study's settings."""
        self._update_study(study_id, **settings_columns(settings))

    def _update_study(self, study_id: int, **values: Any) -> None:
        with self._write() as connection:
            changed = connection.execute(
                update(Study).where(Study.id == study_id).values(**values)
            ).rowcount
            if not changed:
                raise IllegalChangeError(f"there is no study {study_id}")

    # Leases -------------------------------------------------------------------------------------

    def acquire_lease(self, study_id: int, *, seconds: float = leases.LEASE_SECONDS) -> None:
        """See `leases.acquire`."""
        with self._write() as connection:
            leases.acquire(connection, study_id, seconds)

    def renew_lease(self, study_id: int, *, seconds: float = leases.LEASE_SECONDS) -> None:
        """See `leases.renew`."""
        with self._write() as connection:
            leases.renew(connection, study_id, seconds)

    def release_lease(self, study_id: int) -> None:
        """See `leases.release`."""
        with self._write() as connection:
            leases.release(connection, study_id)

    # Runs (their life: `studies.database.lifecycle`) --------------------------------------------

    def add_run(
        self,
        *,
        study_id: int,
        kind: RunKind,
        number: int,
        params: dict[str, Any],
        config: RunConfig,
        budget_flops: int,
        **facts: Any,
    ) -> int:
        """Queue a run that was admitted and enter it in the ledger as planned; returns its id.

        `facts` are other columns of `Run`: the data, the folder, where it comes from.

        Raises:
            BudgetExceeded: its steps cost more than `budget_flops` in the config's convention.
            IllegalChangeError: no such study, or the number is taken.
            ConfigError: the configuration's number of steps is still open.
        """
        total = config.total_tokens
        planned = {c: config.steps * config.flops_per_step(c) for c in Convention}
        if planned[config.convention] > budget_flops:
            raise BudgetExceeded(
                f"run {number} costs {planned[config.convention]} of {budget_flops} FLOPs"
            )
        row = {
            "study_id": study_id,
            "kind": kind,
            "number": number,
            "status": RunStatus.QUEUED,
            "params": params,
            "config": config.to_dict(),
            "config_hash": config_hash(config),
            "seed": config.seed,
            "git_commit": provenance.git_commit(),
            "versions": provenance.versions(),
            "budget_flops": budget_flops,
            "n_params": config.n_params,
            "num_steps": config.steps,
            "tokens_per_step": config.tokens_per_step,
            "planned_tokens": total,
            **{f"planned_flops_{convention}": flops for convention, flops in planned.items()},
            "created_utc": lifecycle.now(),
            **facts,
        }
        try:
            with self._write() as connection:
                lifecycle.lock_study(connection, study_id)
                inserted = connection.execute(insert(Run).values(**row)).inserted_primary_key
                run_id: int = inserted[0] if inserted else 0
                amount = Amount(config.steps, total, **planned)
                lifecycle.enter(connection, study_id, run_id, "planned", 0, amount)
        except IntegrityError as error:
            raise IllegalChangeError(f"{kind} {number} cannot be entered ({error.orig})") from error
        return run_id

    # Fits and predictions -----------------------------------------------------------------------

    def add_fit(
        self, study_id: int, *, scale: float, refusal: str | None, record: dict[str, Any]
    ) -> int:
        """Record a fitted law, or why there is none; returns its id.

        Equal to the newest one: that one's id, nothing is written.
        """
        newest = self.newest_fit(study_id)
        if newest is not None and (newest.scale, newest.refusal, newest.record) == (
            scale, refusal, record,
        ):  # fmt: skip
            return newest.id
        with self._write() as connection:
            lifecycle.lock_study(connection, study_id)
            inserted = connection.execute(
                insert(Fit).values(
                    study_id=study_id,
                    created_utc=lifecycle.now(),
                    scale=scale,
                    refusal=refusal,
                    record=record,
                )
            ).inserted_primary_key
        return inserted[0] if inserted else 0

    def add_prediction(
        self, run: Run, *, loss_nats: tuple[float, float, float], **facts: Any
    ) -> None:
        """Record what is predicted of a promotion; the first prediction stands.

        `loss_nats` are the loss and the ends of its interval, `facts` other columns of the row.

        Raises:
            IllegalChangeError: the run has been trained already, so this would be no prediction.
        """
        with self._write() as connection:
            lifecycle.lock_study(connection, run.study_id)
            if connection.scalar(select(Prediction.id).where(Prediction.run_id == run.id)):
                return
            if connection.scalar(select(Run.attempts).where(Run.id == run.id)):
                raise IllegalChangeError(f"run {run.id} has started: too late to predict its loss")
            loss, low, high = loss_nats
            connection.execute(
                insert(Prediction).values(
                    study_id=run.study_id,
                    run_id=run.id,
                    created_utc=lifecycle.now(),
                    val_loss_nats=loss,
                    low_nats=low,
                    high_nats=high,
                    **facts,
                )
            )

    # Rejections ---------------------------------------------------------------------------------

    def add_rejection(
        self, study_id: int, number: int, params: dict[str, Any], rejected: Rejected
    ) -> None:
        """Record a refused proposal; of one number only the first counts."""
        known = select(Rejection.id).where(
            Rejection.study_id == study_id, Rejection.number == number
        )
        with self._write() as connection:
            lifecycle.lock_study(connection, study_id)
            if connection.scalar(known) is not None:
                return
            connection.execute(
                insert(Rejection).values(
                    study_id=study_id,
                    number=number,
                    created_utc=lifecycle.now(),
                    params=params,
                    **{**vars(rejected), "excess": lifecycle.finite(rejected.excess)},
                )
            )
