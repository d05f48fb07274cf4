"""`secateur sweep`: two workers share the runs of a study, one of them is killed, and nothing is lost or done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from shell import Secateur

from secateur.core.bundle import Bundle
from secateur.core.errors import OutputError
from secateur.verbs.study import Study

optuna = pytest.importorskip("optuna")
HERE = Path(__file__).parent
SWEEP = ("sweep", "toys:pair", "--study", "sqlite:///s.db", "--budget", "flops<=60%", "--drop", "90%", "--epochs", "2",
         "--rounds", "1", "--seeds", "0,1", "--saliency", "l1,random", "--heartbeat", "1", "-o", "out")  # fmt: skip
NAMES = {f"{name}-drop90-seed{seed}" for name in ("l1", "random") for seed in (0, 1)}


def worker(folder: Path, **environment: str) -> subprocess.Popen[str]:
    variables = os.environ | {"PYTHONPATH": str(HERE)} | environment
    command = [sys.executable, "-m", "secateur", *SWEEP, "--json"]
    return subprocess.Popen(
        command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_one_of_two_workers_is_killed(folder: Path, secateur: Secateur) -> None:
    """The first kills itself within a run, the second one does all the others and takes that run up again."""
    doomed = worker(folder, TOYS_SIGNAL="SIGKILL", TOYS_STOP_AFTER="20")
    assert doomed.wait() == -signal.SIGKILL
    survivors = [worker(folder), worker(folder)]
    documents = [(each.communicate(), each.returncode) for each in survivors]
    for (_, error), code in documents:
        assert code == 0, error

    trials = optuna.load_study(study_name="secateur sweep of pair", storage="sqlite:///s.db").trials
    states = {name: [t.state.name for t in trials if t.user_attrs.get("cell") == name] for name in NAMES}
    assert all(found.count("COMPLETE") == 1 for found in states.values()), states
    assert any("FAIL" in found for found in states.values()), states
    assert {path.name for path in (folder / "out").iterdir() if not path.name.startswith(".")} == NAMES

    again = secateur(*SWEEP, "--json").document
    assert len(again["runs"]) == 4
    assert again["failed"] == []
    assert [row["runs"] for row in again["summary"]] == [2, 2]
    for run in again["runs"]:
        bundle = Bundle.open(folder / run["bundle"])
        assert run["delta_mtl"] == bundle.manifest.point.delta_mtl
        assert bundle.manifest.seed == run["seed"]
        assert bundle.manifest.settings["saliency"] == run["saliency"]
    after = optuna.load_study(study_name="secateur sweep of pair", storage="sqlite:///s.db").trials
    assert len(after) == len(trials)


def test_a_study_of_something_else_is_not_joined(secateur: Secateur) -> None:
    options = ("sweep", "toys:pair", "--study", "sqlite:///s.db", "--epochs", "0", "--rounds", "1", "--seeds", "0",
               "--drop", "90%")  # fmt: skip
    shown = secateur(*options, "--budget", "flops<=80%")
    assert shown.code == 0, shown.err
    assert "1 of 1 runs" in shown.out
    secateur(*options, "--budget", "flops<=70%").refused(2, "has another budget", "--study")


def test_a_users_mistake_is_one_line(secateur: Secateur, monkeypatch: pytest.MonkeyPatch) -> None:
    study = ("sweep", "toys:pair", "--budget", "flops<=60%", "--study")
    secateur(*study, "nowhere", "--seeds", "0").refused(2, "cannot be opened", "sqlite:///sweep.db")
    secateur(*study, "sqlite:///s.db", "--seeds", "0,one").refused(2, "whole numbers")
    secateur(*study, "sqlite:///s.db", "--saliency", "l3").refused(2, 'unknown saliency "l3"')
    secateur(*study, "sqlite:///s.db", "--set", "lr=fast").refused(2, "lr", "fast")
    secateur(*study, "sqlite:///s.db", "--set", "speed=1").refused(2, 'no setting "speed"')
    monkeypatch.setitem(sys.modules, "optuna", None)
    secateur(*study, "sqlite:///s.db").refused(4, "optuna is not installed", "secateur[scale]")


def test_a_run_that_fails_is_told_and_not_tried_again(secateur: Secateur) -> None:
    shown = secateur(
        "sweep", "toys:nan_in_training", "--study", "sqlite:///s.db", "--budget", "flops<=80%", "--seeds", "0",
        "--drop", "90%", "--json",
    )  # fmt: skip
    assert shown.code == 2, shown.err
    assert "every run failed" in shown.document["error"]["message"]
    assert shown.document["runs"] == []
    assert [each["error"] for each in shown.document["failed"]] == ["the loss became nan in epoch 0 of fine-tuning"]
    assert len(optuna.load_study(study_name="secateur sweep of pair", storage="sqlite:///s.db").trials) == 1


def test_runs_that_another_worker_was_asked_for_are_left_to_it(folder: Path) -> None:
    study = Study("sqlite:///s.db", "shared", {}, 30)
    study._study.enqueue_trial({}, user_attrs={"cell": "of another"})
    study.work(["mine"], lambda cell: {"value": 1.0, "cell": cell})
    assert study.results(["mine"])["mine"]["cell"] == "mine"
    study.work(["of another"], lambda cell: {"value": 2.0, "cell": cell})
    assert study.results(["of another"])["of another"]["cell"] == "of another"


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OutputError("no space", "free some")])
def test_a_run_that_was_stopped_is_never_given_up(folder: Path, stop: BaseException) -> None:
    def stopped(cell: str) -> dict[str, object]:
        raise stop

    study = Study("sqlite:///s.db", "stopped", {}, 30)
    for _ in range(4):
        with pytest.raises(type(stop)):
            study.work(["long"], stopped)
    study.work(["long"], lambda cell: {"value": 1.0})
    assert "error" not in study.results(["long"])["long"]
