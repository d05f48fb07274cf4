"""Fine-tuning: the same result after a stop, equal gradients however they are gathered, only good results."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.compress.dataflow import trace
from secateur.compress.finetune import Recipe, finetune
from secateur.compress.journal import Journal
from secateur.compress.speed import fast_precision
from secateur.compress.training.steps import warmup_cosine
from secateur.core.errors import ModelError
from secateur.core.predict import losses
from secateur.core.task import Task, Workload
from secateur.workloads.metrics import Accuracy

EVERYTHING = Recipe(4, feature_distillation=0.5, weighting="uncertainty", accumulate=2, patience=3)


def tuned(
    workload: Workload, recipe: Recipe, model: nn.Module | None = None, journal: Journal | None = None
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """A cut model after fine-tuning, with the history."""
    model = model or cut(workload)
    journal = journal or Journal(None, {}, resume=False)
    return model, finetune(model, workload, recipe, seed=0, label="tuning", journal=journal)


def cut(workload: Workload) -> nn.Module:
    return trace(workload.model, workload.calibration[0][0]).cut({"deep.0": range(5), "stem.0": range(6)})


def total(model: nn.Module, workload: Workload) -> float:
    with torch.no_grad():
        found = [losses(model.eval(), batch, workload.tasks) for batch in workload.calibration]
    return sum(task.weight * float(each[task.name]) for each in found for task in workload.tasks)


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    state = other.state_dict()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize("recipe", [EVERYTHING, replace(EVERYTHING, weighting="dwa", patience=0)])
def test_a_stopped_run_ends_in_the_same_weights(squares: Workload, tmp_path: Path, recipe: Recipe) -> None:
    whole, history = tuned(squares, recipe)
    stopped = _StoppingJournal(tmp_path / "state", 2)
    with pytest.raises(KeyboardInterrupt):
        tuned(squares, recipe, journal=stopped)
    resumed, again = tuned(squares, recipe, journal=Journal(tmp_path / "state", {}, resume=True))
    assert again == history
    assert_equal(whole, resumed)


class _StoppingJournal(Journal):
    """Interrupts the run after so many checkpoints."""

    def __init__(self, folder: Path, checkpoints: int) -> None:
        super().__init__(folder, {}, resume=False)
        self._left = checkpoints

    def save_tensors(self, key: str, value: Any) -> None:
        super().save_tensors(key, value)
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt


def test_accumulated_halves_learn_as_whole_batches_do(squares: Workload) -> None:
    """Without statistics of a batch, the mean gradient of two halves is that of the whole."""
    model = _without_statistics(cut(squares))
    halves = [
        (inputs[part], {name: target[part] for name, target in targets.items()})
        for inputs, targets in squares.train
        for part in (slice(0, 8), slice(8, 16))
    ]
    recipe = Recipe(2, distillation=0.0, precision="float32")
    whole, history = tuned(squares, recipe, copy.deepcopy(model))
    halved, other = tuned(replace(squares, train=halves), replace(recipe, accumulate=2), copy.deepcopy(model))
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(tensor, halved.state_dict()[name], rtol=1e-2, atol=1e-4, msg=name)
    assert other[-1]["loss"] == pytest.approx(history[-1]["loss"], rel=1e-4)


def _without_statistics(model: nn.Module) -> nn.Module:
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.Identity())
    return model


def test_features_of_the_teacher_draw_those_of_the_student(squares: Workload) -> None:
    """Distilling features alone, without any loss of a task, brings back what the cut lost."""
    silent = replace(squares, tasks=tuple(replace(task, weight=0.0) for task in squares.tasks))
    plain = Recipe(12, distillation=0.0, lr=3e-3)
    lost = total(cut(squares), squares)
    unchanged, _ = tuned(silent, replace(plain, epochs=1, lr=0.0, feature_distillation=1.0))
    drawn, history = tuned(silent, replace(plain, feature_distillation=1.0))
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert total(drawn, squares) < 0.8 * lost  # 0.70 or a bit less, by processor
    assert total(drawn, squares) < total(unchanged, squares)


def test_early_stop_keeps_the_best_epoch(squares: Workload) -> None:
    """Training data that teach the opposite: the calibration loss rises, so that the first epoch is the best."""
    wrong = [(x, {"quadrant": 3 - t["quadrant"], "brightness": -t["brightness"]}) for x, t in squares.train]
    recipe = Recipe(8, lr=3e-3, distillation=0.0, patience=2)
    stopped, history = tuned(replace(squares, train=wrong), recipe, copy.deepcopy(squares.model))
    values = [entry["calibration"] for entry in history]
    assert len(history) < 8
    assert min(values) not in values[-2:]
    assert total(stopped, squares) / len(squares.calibration) == pytest.approx(min(values), rel=1e-4)


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_whatever_becomes_infinite_leaves_the_last_good_weights(squares: Workload, kind: str) -> None:
    """A loss that is NaN, or one that is finite and whose gradient is not, at the eighth step (of 6 an epoch)."""
    seen = 0

    def breaking(prediction: Tensor, target: Tensor) -> Tensor:
        nonlocal seen
        seen += prediction.requires_grad
        value = nn.functional.mse_loss(prediction, target)
        if seen != 8 or not prediction.requires_grad:
            return value
        return value * float("nan") if kind == "loss" else value + (prediction - prediction.detach()).abs().sum().sqrt()

    quadrant, brightness = squares.tasks
    broken = replace(squares, tasks=(quadrant, Task("brightness", breaking, brightness.metric, "lower", 4.0)))
    model = cut(squares)
    lost = total(model, squares)
    with pytest.raises(ModelError, match=f"the {kind} became nan in epoch 1 of fine-tuning"):
        tuned(broken, Recipe(3), model)
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    assert total(model, squares) < lost
    assert not model.training


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision_learns_too(squares: Workload, precision: str) -> None:
    lost = total(cut(squares), squares)
    model, history = tuned(squares, Recipe(3, precision=precision))
    assert total(model, squares) < lost
    assert all(tensor.dtype == torch.float32 for tensor in model.parameters())
    exact, reference = tuned(squares, Recipe(3, precision="float32"))
    assert history[-1]["loss"] == pytest.approx(reference[-1]["loss"], rel=0.25)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), exact.parameters(), strict=True))


class IntoItsOwn(nn.Module):
    """Writes what a layer computed into a tensor of its own, which is float32 whatever the layer computed in."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = self.inner(x)
        gathered = torch.zeros(len(x), 4)
        gathered[torch.arange(len(x))] = found["quadrant"]
        return {**found, "quadrant": gathered}


def test_a_model_that_only_trains_in_float32_is_trained_in_it(
    squares: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself, on a processor with bfloat16; asked for bfloat16, it fails."""
    monkeypatch.setattr("secateur.compress.speed.fast_bfloat16", lambda device: True)
    assert fast_precision(squares.model, squares.calibration[0][0], squares.tasks) == torch.bfloat16
    model = IntoItsOwn(squares.model)
    workload = squares.with_model(copy.deepcopy(model))
    assert fast_precision(model, squares.calibration[0][0], squares.tasks) == torch.float32
    _, history = tuned(workload, Recipe(1), copy.deepcopy(model))
    assert history[0]["loss"] > 0
    with pytest.raises(RuntimeError, match="dtype"):
        tuned(workload, Recipe(1, precision="bfloat16"), copy.deepcopy(model))


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"one": self.norm(self.layer(x))}


def test_a_calibration_batch_that_no_norm_can_learn_from_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sample, whose features a batch norm sees as one value per channel: training data may well be larger."""
    monkeypatch.setattr("secateur.compress.speed.fast_bfloat16", lambda device: True)
    task = Task("one", nn.functional.mse_loss, Accuracy(), "higher")
    model = Normed()
    assert fast_precision(model, torch.randn(2, 3), (task,)) == torch.bfloat16
    assert fast_precision(model, torch.randn(1, 3), (task,)) == torch.float32


@pytest.mark.parametrize("warmup", [1e-4, 0.002, 0.05, 0.5])
def test_the_learning_rate_warms_up_from_above_zero_to_what_was_asked_for_and_no_further(warmup: float) -> None:
    factors = [warmup_cosine(step / 1000, warmup) for step in range(1001)]
    assert factors[0] > 0
    assert max(factors) <= 1
    assert factors[-1] == pytest.approx(0)
