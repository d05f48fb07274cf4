"""A study: work that any number of processes, on any number of machines, do together through one data base.

Every piece of work is a cell. A worker that finds a cell without an owner files a trial for it; the earliest trial of a
cell that did not fail owns it, and whoever draws another one drops it, so that workers need not agree before they file.
Workers send heartbeats while they work. The trial of one that was not heard from fails, and its cell is free again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from secateur.core.errors import BudgetError, DataError, MissingExtraError, ModelError, OutputError, SecateurError

if TYPE_CHECKING:
    import optuna

ATTEMPTS = 3
"""A cell whose workers died so often is given up."""
GRACE = 4
"""Heartbeats that a worker may miss."""
FINAL = (BudgetError, ModelError, DataError)
"""What would come of it again, whoever tried."""
Result = Mapping[str, Any]
"""What a cell came to, as JSON; "value" is its figure of merit."""


class Study:
    """Cells by name, shared through an Optuna storage."""

    def __init__(self, url: str, name: str, definition: Mapping[str, Any], heartbeat: int) -> None:
        """Open a study, or make it.

        Args:
            url: of the storage, as SQLAlchemy takes it: `sqlite:///sweep.db`, `postgresql://host/sweeps`.
            definition: what all workers of the study must have in common, as JSON.
            heartbeat: seconds between two signs of life.

        Raises:
            MissingExtraError: Optuna is not installed.
            OutputError: the storage cannot be opened, or the study in it is another one.
        """
        self._study = _open(url, name, heartbeat)
        self._poll = min(2.0, heartbeat / 2)
        wanted = json.loads(json.dumps(definition))
        found = self._study.user_attrs.get("definition")
        if found is None:
            self._study.set_user_attr("definition", wanted)
        elif found != wanted:
            different = [key for key in wanted if found.get(key) != wanted[key]]
            raise OutputError(
                f"the study in {url} has another {', '.join(different) or 'definition'}",
                "repeat the command that it was started with, or name another --study",
            )

    def work(self, cells: Sequence[str], run: Callable[[str], Result]) -> None:
        """Do cells until all are done, by whomever. A user's mistake in one is noted, and not tried again."""
        while True:
            with _quiet():
                self._fail_stale()
                if all(self._state(cell) == "done" for cell in cells):
                    return
                for cell in cells:
                    if self._state(cell) == "free":
                        self._study.enqueue_trial({}, user_attrs={"cell": cell})
                if not self._one(cells, run):
                    time.sleep(self._poll)

    def results(self, cells: Sequence[str]) -> dict[str, Result]:
        """The result of each cell that is done; {"error": message} for those that failed."""
        found: dict[str, Result] = {}
        for cell in cells:
            for trial in self._trials(cell):
                if trial.state.name == "COMPLETE" or "error" in trial.user_attrs:
                    found[cell] = {**trial.user_attrs.get("result", {}), "trial": trial.number} | {
                        key: value for key, value in trial.user_attrs.items() if key == "error"
                    }
                    break
            else:
                if self._state(cell) == "done":
                    found[cell] = {"error": f"given up after {ATTEMPTS} workers died of it"}
        return found

    def _one(self, cells: Sequence[str], run: Callable[[str], Result]) -> bool:
        """Draw a waiting trial and do it, if it is the owner of its cell. Whether there was one to draw."""
        if not any(trial.user_attrs.get("cell") in cells for trial in self._trials(None) if _waits(trial)):
            return False
        raised: list[BaseException] = []

        def objective(trial: optuna.Trial) -> float:
            try:
                return self._do(trial, cells, run)
            except BaseException as error:
                raised.append(error)
                raise

        try:
            self._study.optimize(objective, n_trials=1)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            if raised and not isinstance(raised[0], (*FINAL, _taken())):
                raise
            if not raised and not self._study.trials[-1].state.is_finished():
                raise
        return True

    def _do(self, trial: optuna.Trial, cells: Sequence[str], run: Callable[[str], Result]) -> float:
        """One run. A cell that only another worker was asked for is left to that one, which files it again."""
        import optuna

        cell = trial.user_attrs.get("cell")
        if cell not in cells or next(_owners(self._trials(cell))).number != trial.number:
            raise optuna.TrialPruned
        try:
            result = run(cell)
        except FINAL as error:
            trial.set_user_attr("error", error.message)
            raise
        except (KeyboardInterrupt, SecateurError):
            trial.set_user_attr("stopped", True)
            raise
        trial.set_user_attr("result", dict(result))
        return float(result["value"])

    def _state(self, cell: str) -> str:
        """free, taken or done."""
        trials = self._trials(cell)
        died = sum(trial.state.name == "FAIL" and "stopped" not in trial.user_attrs for trial in trials)
        if died >= ATTEMPTS or any("error" in trial.user_attrs for trial in trials):
            return "done"
        owner = next(_owners(trials), None)
        return "free" if owner is None else "done" if owner.state.name == "COMPLETE" else "taken"

    def _trials(self, cell: str | None) -> list[optuna.trial.FrozenTrial]:
        found = self._study.get_trials(deepcopy=False)
        return [trial for trial in found if cell is None or trial.user_attrs.get("cell") == cell]

    def _fail_stale(self) -> None:
        import optuna

        optuna.storages.fail_stale_trials(self._study)


def _open(url: str, name: str, heartbeat: int) -> optuna.Study:
    try:
        import optuna
    except ImportError:
        raise MissingExtraError("optuna", "scale") from None
    optuna.logging.set_verbosity(logging.CRITICAL)
    try:
        with _quiet():
            storage = optuna.storages.RDBStorage(url, heartbeat_interval=heartbeat, grace_period=GRACE * heartbeat)
            sampler = optuna.samplers.RandomSampler()
            return optuna.create_study(
                storage=storage, sampler=sampler, study_name=name, direction="maximize", load_if_exists=True
            )
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise OutputError(
            f"the study {url} cannot be opened: {reason[0]}", "for example: sqlite:///sweep.db"
        ) from error


def _owners(trials: Sequence[optuna.trial.FrozenTrial]) -> Iterator[optuna.trial.FrozenTrial]:
    """The trials of a cell that did not fail and were not dropped, the earliest first."""
    return (trial for trial in trials if trial.state.name not in ("FAIL", "PRUNED"))


def _waits(trial: optuna.trial.FrozenTrial) -> bool:
    return str(trial.state.name) == "WAITING"


def _taken() -> type[Exception]:
    """Another worker took this one for dead."""
    import optuna

    found: type[Exception] = optuna.exceptions.UpdateFinishedTrialError
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Heartbeats are called experimental by Optuna at every use."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"optuna\.|secateur\.verbs\.study")
        yield
