"""prune(): budgets met exactly or said to be missed, the same run from the same seed, and none lost to kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import tiny
import torch
from torch import Tensor, nn

from secateur.compress.compressed import Compressed
from secateur.compress.pagcp import Settings, prune
from secateur.core.budget import Budget, Tolerance
from secateur.core.errors import BudgetError, ModelError, OutputError
from secateur.core.task import Task, Workload
from secateur.profiles.count import count
from secateur.verbs.changes import changes

TESTS = Path(__file__).parents[2]
QUICK = replace(tiny.FAST, rounds=1, epochs=1, max_passes=20, local_tolerance=0.5)


def pruned(squares: Workload, budget: str, **options: object) -> Compressed:
    options = {"tolerance": Tolerance.parse("90%"), "settings": QUICK, **options}
    return prune(squares, Budget.parse(budget), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "budget", ["flops<=50%", "params<=3.2K", "memory<=80%", "size<=13KiB", "flops<=60%,params<=50%"]
)
def test_the_counted_costs_of_the_result_meet_the_budget(squares: Workload, budget: str) -> None:
    before = {name: tensor.clone() for name, tensor in squares.model.state_dict().items()}
    result = pruned(squares, budget)
    assert not any("<=" in miss for miss in result.misses), result.misses  # accuracy is not the question here
    costs = count(result.model, squares.example_input, squares.task_names).costs
    assert costs == result.costs
    assert Budget.parse(budget).misses(costs, result.costs_before) == []
    for name, tensor in squares.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_what_is_fixed_stays_whole(squares: Workload) -> None:
    settings = replace(QUICK, epochs=0, **changes(Settings, ["fixed=stem.*, deep.0"]))
    result = pruned(squares, "flops<=70%", settings=settings)
    assert not any("<=" in miss for miss in result.misses), result.misses
    assert (result.model.stem[0].out_channels, result.model.deep[0].out_channels) == (12, 16)
    with pytest.raises(BudgetError, match='no channel group matches "neck"'):
        pruned(squares, "flops<=70%", settings=replace(QUICK, fixed=("neck",)))


def test_an_impossible_budget_says_how_near_it_came(squares: Workload) -> None:
    result = pruned(squares, "flops<=0.01%", settings=replace(QUICK, max_passes=2, epochs=0))
    assert not result.budget_met
    assert result.misses[0].startswith("flops<=0.01%: reached")
    assert result.points


def test_the_same_seed_gives_the_same_result(squares: Workload) -> None:
    one, other = (pruned(squares, "flops<=60%", seed=5) for _ in range(2))
    assert one.history == other.history
    assert one.oracle == other.oracle
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name]), name


def test_a_loss_that_becomes_nan_in_training_is_one_clear_error(squares: Workload) -> None:
    def breaking(prediction: Tensor, target: Tensor) -> Tensor:
        loss = nn.functional.mse_loss(prediction, target)
        return loss * float("nan") if prediction.requires_grad else loss

    tasks = (squares.tasks[0], Task("brightness", breaking, squares.tasks[1].metric, "lower"))
    with pytest.raises(ModelError, match="the loss became nan in epoch 0 of fine-tuning"):
        pruned(replace(squares, tasks=tasks), "flops<=80%")


def test_a_stopped_run_resumes_only_as_the_run_it_was(squares: Workload, tmp_path: Path) -> None:
    state = tmp_path / "state"
    pruned(squares, "flops<=60%", state=state)
    with pytest.raises(OutputError, match=r"the stopped run in .* had another budget"):
        pruned(squares, "flops<=50%", state=state, resume=True)
    with pytest.raises(OutputError, match="had another seed"):
        pruned(squares, "flops<=60%", state=state, resume=True, seed=1)


def test_a_damaged_journal_is_named(squares: Workload, tmp_path: Path) -> None:
    state = tmp_path / "state"
    pruned(squares, "flops<=60%", state=state)
    journal = state / "journal.json"
    journal.write_bytes(journal.read_bytes()[:-20])
    with pytest.raises(OutputError, match=r"journal\.json is damaged"):
        pruned(squares, "flops<=60%", state=state, resume=True)


class TestKilled:
    """A run is killed with SIGKILL whenever its journal has grown by some steps, and started again."""

    BUDGET = "flops<=45%"

    def start(self, folder: Path, weights: Path, name: str) -> subprocess.Popen[bytes]:
        arguments = [sys.executable, tiny.__file__, weights, folder / f"{name}-state", folder / name, self.BUDGET]
        return subprocess.Popen(list(map(str, arguments)), env=os.environ | {"PYTHONPATH": str(TESTS)})

    def steps(self, folder: Path, name: str) -> int:
        journal = folder / f"{name}-state" / "journal.json"
        return len(json.loads(journal.read_text())["steps"]) if journal.is_file() else 0

    def run_until(self, folder: Path, weights: Path, name: str, steps: int) -> bool:
        """Start or resume the run; kill it once its journal holds so many steps. Whether it ended before that."""
        process = self.start(folder, weights, name)
        while process.poll() is None and self.steps(folder, name) < steps:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        return process.wait() == 0

    def test_resumed_runs_end_in_the_same_result(self, trained_squares: nn.Module, tmp_path: Path) -> None:
        weights = tmp_path / "weights.safetensors"
        safetensors.torch.save_file(trained_squares.state_dict(), weights)
        assert self.start(tmp_path, weights, "whole").wait() == 0
        total = self.steps(tmp_path, "whole")
        assert total >= 8
        for share in (0.3, 0.6, 0.95):
            assert not self.run_until(tmp_path, weights, "killed", round(share * total))
        assert self.start(tmp_path, weights, "killed").wait() == 0

        whole, killed = ((tmp_path / f"{name}.json").read_text() for name in ("whole", "killed"))
        assert killed == whole
        whole, killed = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("whole", "killed"))
        assert killed == whole
