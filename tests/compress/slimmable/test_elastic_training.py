"""Training an elastic model: it learns at every width, resumes bit by bit, and splits over processes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from elastic_tiny import FAST, Squares, elastic, trained, workload
from torch import Tensor, nn

from secateur.compress.journal import Journal
from secateur.compress.slimmable.features import distance, find_features
from secateur.compress.slimmable.statistics import inputs_of, recalibrated
from secateur.compress.slimmable.train import _drawn, _Run, train
from secateur.compress.training.distill import distillation
from secateur.core.errors import ModelError
from secateur.core.predict import evaluate_with, predict, task_losses

TESTS = Path(__file__).parents[2]


def metrics(model, at) -> dict[str, float]:
    found = workload()
    statistics = recalibrated(model, at, inputs_of(found.train, 4), found.tasks)
    subnet = model.at(at, statistics)
    return evaluate_with(lambda x: predict(subnet, x, found.tasks), found.test, found.tasks)


def test_every_width_learns() -> None:
    model, history = trained(replace(FAST, epochs=12))
    assert [entry["epoch"] for entry in history] == list(range(12))
    assert history[-1]["tasks"]["quadrant"] < 0.7 * history[0]["tasks"]["quadrant"]
    assert history[-1]["smallest"]["quadrant"] < 0.7 * history[0]["smallest"]["quadrant"]
    assert set(history[0]["gradients"]) == {"largest", "smallest", "random"}
    chance = 0.25
    for at in (model.space.smallest, model.space.largest, (0, 3, 3, 0)):
        assert metrics(model, at)["quadrant"] > 3 * chance, at


def test_private_norms_learn_too() -> None:
    model, _ = trained(replace(FAST, epochs=8, private_norms=True))
    found = workload()
    subnet = model.at(model.space.smallest)
    assert evaluate_with(lambda x: predict(subnet, x, found.tasks), found.test, found.tasks)["quadrant"] > 0.6


class IntoItsOwn(Squares):
    """Writes scores into a float32 tensor of its own, which autocast's bfloat16 scores do not fit."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = super().forward(x)
        scores = torch.zeros(len(x), 4)
        scores[torch.arange(len(x))] = found["quadrant"]
        return {**found, "quadrant": scores}


def test_a_model_that_only_trains_in_float32_is_trained_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.compress.slimmable.train.fast_bfloat16", lambda device: True)
    found = workload(IntoItsOwn())
    model = elastic(found)
    train(model, found, replace(FAST, epochs=1), seed=3, journal=Journal(None, {}, resume=False))
    assert metrics(model, model.space.largest)["quadrant"] > 0.25


def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole, history = trained()

    class KilledError(Exception):
        pass

    class Killing(Journal):
        def save_tensors(self, key: str, value: object) -> None:
            super().save_tensors(key, value)
            raise KilledError

    state = tmp_path / "state"
    for _ in range(2):
        with pytest.raises(KilledError):
            trained(journal=Killing(state, {"seed": 3}, resume=True))
    resumed, again = trained(journal=Journal(state, {"seed": 3}, resume=True))
    assert again == history
    for one, other in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_two_processes_do_what_one_does_with_twice_the_batches(tmp_path: Path) -> None:
    """Gradients of two batches averaged over two gloo processes, or within one: the same steps."""
    variables = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TESTS / "compress" / "elastic_tiny.py")]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517"]
    one = subprocess.Popen([*command, tmp_path / "a", tmp_path / "one", "2"], env=variables)
    two = [*launch, *command[1:], str(tmp_path / "b"), str(tmp_path / "two"), "1"]
    done = subprocess.run(two, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert one.wait() == 0
    alone, first, second = (
        safetensors.torch.load_file(tmp_path / f"{name}.safetensors") for name in ("one-0", "two-0", "two-1")
    )
    for name, tensor in alone.items():
        if "running" in name or "tracked" in name:
            continue  # each process sees its own batches; recalibration makes statistics anew
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_loss_that_is_not_finite_stops_with_the_last_good_weights() -> None:
    found = workload()
    model = elastic(found)
    calls = 0

    def explode(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        loss = torch.nn.functional.mse_loss(prediction, target)
        return loss * float("nan") if calls > 20 else loss

    broken = replace(found, tasks=(found.tasks[0], replace(found.tasks[1], loss=explode)))
    with pytest.raises(ModelError, match="the loss became nan in epoch 0"):
        train(model, broken, FAST, seed=0, journal=Journal(None, {}, resume=False))
    assert all(torch.isfinite(tensor).all() for tensor in model.model.state_dict().values())


def test_features_are_where_decoders_read_the_encoder() -> None:
    found = workload()
    model = elastic(found)
    features = find_features(model.space, found.calibration[0][0][:2])
    assert [(feature.path, feature.call) for feature in features] in ([("deep.2", 0)], [("deep", 0)])
    full = [torch.randn(2, 16, 4, 4)]
    at = model.space.smallest
    kept = model.space.channels(at)["deep.0"]
    assert kept < 16
    assert distance([full[0][:, :kept]], full, features, model.space, at) == 0
    twice = distance([2 * full[0][:, :kept]], full, features, model.space, at)
    torch.testing.assert_close(twice, torch.tensor(1.0), rtol=1e-4, atol=0)


def test_preferred_tasks_never_get_the_smaller_decoder() -> None:
    space = elastic(workload()).space
    draw = np.random.default_rng(0)
    places = [space.decoder(task)[0] for task in space.tasks]
    drawn = [_drawn(space, draw, np.array([1.5, 0.5])) for _ in range(50)]
    assert all(found[places[0]] >= found[places[1]] for found in drawn)
    assert any(found[places[0]] > found[places[1]] for found in drawn)


def test_recalibration_gives_the_statistics_of_its_inputs() -> None:
    """By hand for the first layer: the mean over batches of the convolution's mean, and of its unbiased variance."""
    found = workload()
    model = elastic(found)
    inputs = inputs_of(found.train, 3)
    at = model.space.smallest
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    statistics = recalibrated(model, at, inputs, found.tasks)
    kept = model.space.channels(at)["stem.0"]
    outputs = [torch.nn.functional.conv2d(x, model.model.stem[0].weight[:kept], padding=1) for x in inputs]
    means = torch.stack([y.mean((0, 2, 3)) for y in outputs]).mean(0)
    variances = torch.stack([y.var((0, 2, 3)) for y in outputs]).mean(0)
    torch.testing.assert_close(statistics["stem.1.running_mean"], means)
    torch.testing.assert_close(statistics["stem.1.running_var"], variances)
    assert int(statistics["stem.1.num_batches_tracked"]) == 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.model.state_dict().items())


def test_the_same_encoder_with_other_decoders_has_the_same_encoder_statistics() -> None:
    """What the factorised table stands on."""
    found = workload()
    model = elastic(found)
    inputs = inputs_of(found.train, 2)
    one, other = (recalibrated(model, (1, 2, d, 3 - d), inputs, found.tasks) for d in (0, 3))
    for name in ("stem.1.running_mean", "deep.1.running_var"):
        assert torch.equal(one[name], other[name])
    assert len(one["quadrant.0.1.running_mean"]) != len(other["quadrant.0.1.running_mean"])


class Fixed(nn.Module):
    """Predicts what it was told for every picture."""

    def __init__(self, predictions: dict[str, Tensor]) -> None:
        super().__init__()
        self.predictions, self.shift = predictions, nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: value + self.shift for name, value in self.predictions.items()}


def test_the_original_teaches_what_it_does_better() -> None:
    """Of its two tasks the original solves one by heart here and has the other wrong; only the first is taught."""
    found = workload()
    model = elastic(found)
    inputs, targets = next(iter(found.train))
    right = 20 * torch.nn.functional.one_hot(targets["quadrant"], 4).float()
    original = Fixed({"quadrant": right, "brightness": targets["brightness"] + 100})
    run = _Run(model, replace(found, model=original), replace(FAST, original_distillation=1.0), ())
    outputs = predict(model.at(model.space.largest), inputs, found.tasks)
    losses = task_losses(outputs, targets, found.tasks)
    expected = found.tasks[0].weight * distillation(outputs["quadrant"], right)
    torch.testing.assert_close(run._from_original(inputs, targets, outputs, losses), expected)
