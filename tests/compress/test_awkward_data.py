"""Data and losses as users bring them: losses that are not finite, loaders without a length, targets filled up per
batch, loaders that shuffle, maps over volumes, heads that only training runs. Each works, or is told in one line."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from elastic_tiny import FAST as ELASTIC
from squares import layer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from secateur.compress.finetune import Recipe, finetune
from secateur.compress.journal import Journal
from secateur.compress.pagcp import Settings, prune
from secateur.compress.pagcp.calibration import chunked
from secateur.compress.slimmable import Settings as SlimSettings
from secateur.compress.slimmable import slim
from secateur.core.budget import Budget, Tolerance
from secateur.core.errors import BudgetError, DataError, ModelError
from secateur.core.predict import evaluate
from secateur.core.task import Batch, Workload

QUICK = replace(tiny.FAST, rounds=1, epochs=1, local_tolerance=0.5)
NO_JOURNAL = Journal(None, {}, resume=False)


def pruned(workload: Workload, settings: Settings = QUICK, **options: Any) -> Any:
    return prune(workload, Budget.parse("flops<=60%"), Tolerance.parse("90%"), settings, **options)


def with_loss(workload: Workload, loss: Callable[[Tensor, Tensor], Tensor]) -> Workload:
    """The workload with another loss of its second task."""
    first, second = workload.tasks
    return replace(workload, tasks=(first, replace(second, loss=loss)))


def test_a_candidate_whose_loss_is_infinite_is_refused_and_written_down(squares: Workload, tmp_path: Path) -> None:
    """As a logarithm gives it where a cut network predicts nothing."""
    mse = nn.functional.mse_loss
    whole = max(float(mse(squares.model(x)["brightness"], t["brightness"])) for x, t in squares.calibration)

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        found = mse(prediction, target)
        return found if found < 3 * whole else found * math.inf

    result = pruned(with_loss(squares, loss), replace(QUICK, epochs=0), state=tmp_path / "state")
    ratios = [trial["loss_ratio"]["brightness"] for d in result.history["decisions"] for trial in d["curve"]]
    assert None in ratios
    assert any(ratios)
    json.dumps(result.history, allow_nan=False)


def test_calibration_data_that_a_loss_cannot_take_are_named(squares: Workload) -> None:
    inputs, targets = squares.calibration[1]
    spoilt = [squares.calibration[0], (inputs, {**targets, "brightness": targets["brightness"] * math.nan})]
    with pytest.raises(DataError, match='the loss of "brightness" is nan on some of the calibration data'):
        pruned(replace(squares, calibration=spoilt))


class Volumes(nn.Module):
    """Reads pictures as volumes of one slice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 12, (1, 3, 3), padding=(0, 1, 1))
        self.rest = layer(12, 16, stride=2)
        self.quadrant = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 4))
        self.brightness = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.rest(torch.relu(self.stem(x.unsqueeze(2))).squeeze(2))
        return {"quadrant": self.quadrant(x), "brightness": self.brightness(x.amax((2, 3)))}


def test_a_network_over_volumes_is_pruned_and_made_elastic() -> None:
    workload = replace(tiny.workload(Volumes()), factory=Volumes)
    assert pruned(workload).budget_met
    assert slim(workload, replace(ELASTIC, epochs=1)).table.rows.size


class Endless(IterableDataset[Batch]):
    """Says no length, as a stream."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


def test_a_loader_without_a_length_serves_every_split(squares: Workload) -> None:
    splits = {name: DataLoader(Endless(getattr(squares, name)), None) for name in ("train", "calibration", "test")}
    assert pruned(replace(squares, **splits)).budget_met


def test_batches_whose_targets_were_filled_up_alone_stay_as_they_are() -> None:
    batches = [(torch.zeros(4, 3), {"boxes": torch.zeros(4, boxes, 5)}) for boxes in (2, 3)]
    assert chunked(batches, 4) == batches


def shuffled(batches: list[Batch], **options: Any) -> DataLoader[Any]:
    """Another order, and other batches, each time that it is read."""
    inputs, quadrant, brightness = (
        torch.cat(part) for part in zip(*((x, t["quadrant"], t["brightness"]) for x, t in batches), strict=True)
    )

    def collate(samples: list[Any]) -> Batch:
        x, where, bright = (torch.stack(part) for part in zip(*samples, strict=True))
        return x, {"quadrant": where, "brightness": bright}

    return DataLoader(TensorDataset(inputs, quadrant, brightness), 16, shuffle=True, collate_fn=collate, **options)


class StoppedError(Exception):
    pass


def stopping(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Stop a run right after the journal has its n-th step."""
    write, left = getattr(Journal, name), iter([True] * 2)

    def once(self: Journal, *args: Any) -> Any:
        found = write(self, *args)
        if next(left, None) is None:
            raise StoppedError
        return found

    monkeypatch.setattr(Journal, name, once)


def test_a_resumed_run_sees_the_calibration_data_that_the_whole_one_saw(
    squares: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = replace(squares, calibration=shuffled(tiny.noisy(2, 6)))
    settings = replace(QUICK, epochs=0)
    whole = pruned(workload, settings, seed=4)
    with monkeypatch.context() as patched:
        stopping(patched, "step")
        with pytest.raises(StoppedError):
            pruned(workload, settings, seed=4, state=tmp_path / "state")
    torch.rand(5)
    resumed = pruned(workload, settings, seed=4, state=tmp_path / "state", resume=True)
    assert resumed.history["decisions"] == whole.history["decisions"]


def test_a_loader_with_a_generator_of_its_own_goes_on_where_it_was(
    squares: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tuned(journal: Journal) -> dict[str, Tensor]:
        model = copy.deepcopy(squares.model)
        own = torch.Generator().manual_seed(9)
        workload = replace(squares, train=shuffled(tiny.noisy(1, 6), generator=own))
        finetune(model, workload, Recipe(4, precision="float32"), seed=1, label="tuning", journal=journal)
        return model.state_dict()

    whole = tuned(NO_JOURNAL)
    with monkeypatch.context() as patched:
        stopping(patched, "save_tensors")
        with pytest.raises(StoppedError):
            tuned(Journal(tmp_path / "state", {}, resume=False))
    resumed = tuned(Journal(tmp_path / "state", {}, resume=True))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_a_gradient_that_is_not_a_number_stops_elastic_training_with_sound_weights(
    squares: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The square root of nothing: the loss is finite, its slope is not."""
    steps = iter(range(100))

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        found = nn.functional.mse_loss(prediction, target)
        return found + (prediction * 0).sum().sqrt() if next(steps) > 60 else found

    kept: list[dict[str, Tensor]] = []
    average = "secateur.compress.training.steps.Descent.averaged"
    monkeypatch.setattr(average, lambda self: kept.append(self.ema.module.state_dict()) or kept[-1])
    with pytest.raises(ModelError, match=r"the gradient became (nan|inf).*good step were kept|the gradient became nan"):
        slim(with_loss(squares, loss), ELASTIC)
    assert kept
    assert all(torch.isfinite(tensor).all() for tensor in kept[-1].values())


class Flattening(tiny.Squares):
    """Has a head that looks at a feature map as a row, and runs in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(256, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = super().forward(x)
        if self.training:
            deep = self.deep(self.stem(x))
            found["auxiliary"] = self.auxiliary(deep.view(len(x), -1))
        return found


def test_a_head_that_only_training_runs_decides_on_the_layout_too() -> None:
    workload = replace(tiny.workload(Flattening()), factory=Flattening)
    finetune(copy.deepcopy(workload.model), workload, Recipe(1), seed=0, label="tuning", journal=NO_JOURNAL)


class FlatTeacher(nn.Module):
    """Needs the contiguous layout, which what is left of it does not."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        conv = self.model.stem[0](x)
        return {**self.model(x), "unused": conv.view(len(x), -1)}


def test_the_teacher_decides_on_the_layout_too(squares: Workload) -> None:
    workload = replace(squares, model=FlatTeacher(squares.model).eval())
    finetune(copy.deepcopy(squares.model), workload, Recipe(1), seed=0, label="tuning", journal=NO_JOURNAL)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Settings(lr=-1.0), "lr is -1"),
        (lambda: Settings(weight_decay=-0.1), "weight_decay is -0.1"),
        (lambda: Settings(ratios=()), r"ratios are \[\]"),
        (lambda: Settings(ratios=(0.5, 1.0)), "ratios are"),
        (lambda: Recipe(1, warmup=1.0), "warmup is 1"),
        (lambda: SlimSettings(warmup=1.0), "warmup is 1"),
        (lambda: SlimSettings(concentration=0.0), "concentration is 0"),
        (lambda: SlimSettings(lr=-1.0), "lr is -1"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_before_any_work(make: Callable[[], object], message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        make()


def test_widths_that_all_round_to_the_whole_are_refused_before_training(squares: Workload) -> None:
    with pytest.raises(ModelError, match=r"every width of 0\.97, 1 rounds to all channels"):
        slim(squares, replace(ELASTIC, widths=(0.97, 1.0)))


class Normed(tiny.Squares):
    """An instance norm that keeps statistics, which it learns in training."""

    def __init__(self) -> None:
        super().__init__()
        self.stem[1] = nn.InstanceNorm2d(12, affine=True, track_running_stats=True)


def test_statistics_of_instance_norms_are_those_that_training_left() -> None:
    workload = replace(tiny.workload(Normed()), factory=Normed)
    result = slim(workload, replace(ELASTIC, epochs=1))
    assert float(result.model.stem[1].running_mean.abs().max()) > 0
    assert evaluate(result.model, workload.test, workload.tasks)
