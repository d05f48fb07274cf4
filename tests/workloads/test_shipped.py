"""What ships keeps its word: the committed metrics are those of the committed weights."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from secateur.compress.experts.layers import find
from secateur.compress.experts.usage import Table, measure
from secateur.core.errors import WorkloadError
from secateur.core.predict import check, evaluate, losses, predict
from secateur.core.task import Workload
from secateur.workloads import checkpoint, multifashion, names, workload


def where_data_are(*names: str) -> list[object]:
    """The names, each skipped where its pictures are not installed."""
    absent = not multifashion.DEBIAN.is_dir()
    needs = [
        pytest.mark.skipif(name.startswith("multifashion") and absent, reason="Fashion-MNIST is not installed")
        for name in names
    ]
    return [pytest.param(name, marks=mark) for name, mark in zip(names, needs, strict=True)]


KNOWN = where_data_are(*(name for name in names() if (checkpoint.FOLDER / f"{name}.safetensors").is_file()))


@pytest.fixture(params=KNOWN)
def shipped(request: pytest.FixtureRequest) -> Workload:
    return workload(request.param)


def test_metrics_of_a_small_split_are_reproduced(shipped: Workload) -> None:
    recorded = checkpoint.document(shipped.name)["small"]
    found = evaluate(shipped.model, shipped.test.first(recorded["samples"]), shipped.tasks)
    assert found == pytest.approx(recorded["metrics"], rel=0.01)


def test_the_recorded_metrics_are_good() -> None:
    metrics = checkpoint.document("scenes")["metrics"]
    assert metrics["segmentation"] >= 0.75
    assert metrics["depth"] <= 0.10
    transformer = checkpoint.document("scenes-vit")["metrics"]
    assert transformer["segmentation"] >= 0.7
    assert transformer["depth"] <= 0.08
    detector = checkpoint.document("scenes-detect")
    assert detector["figures"]["mAP50"] >= 0.75
    assert detector["figures"]["mAP50-95"] == pytest.approx(detector["metrics"]["class"])
    assert detector["metrics"]["class"] >= 0.45
    assert detector["metrics"]["box"] >= 0.65
    assert min(checkpoint.document("digits")["metrics"].values()) > 0.9
    assert min(checkpoint.document("multifashion")["metrics"].values()) > 0.75
    assert min(checkpoint.document("multifashion-moe")["metrics"].values()) > 0.8


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("scenes", 5e6),
        ("scenes-moe", 5e6),
        ("digits", 1e6),
        ("multifashion", 2e6),
        ("multifashion-moe", 1e6),
        ("scenes-detect", 2e6),
        ("scenes-vit", 5e6),
    ],
)
def test_weights_are_small(name: str, limit: float) -> None:
    assert (checkpoint.FOLDER / f"{name}.safetensors").stat().st_size <= limit


@pytest.mark.parametrize("name", where_data_are("scenes-moe", "multifashion-moe"))
def test_tasks_have_experts_of_their_own(name: str) -> None:
    """Of the experts that two tasks use in a mixture, a minority is used by both."""
    given = workload(name)
    layers, few = find(given.model), given.calibration.first(64)
    table = Table({task: measure(given.model, layers, few, task) for task in given.task_names})
    for layer in layers:
        shared = table.overlap(layer.path)
        pairs = [shared[a][b] for a, b in itertools.combinations(given.task_names, 2)]
        assert sum(pairs) / len(pairs) < 0.5
        assert len({number for task in given.task_names for number in table.used([task], layer.path)}) > 12  # of 16


def test_the_workload_passes_its_own_check(shipped: Workload) -> None:
    check(shipped)
    assert shipped.reference == shipped.name
    assert shipped.factory is not None
    assert shipped.factory().state_dict().keys() == shipped.model.state_dict().keys()
    assert set(shipped.model(shipped.example_input)) == set(shipped.task_names), "no further output when not training"


def test_losses_can_be_trained_on(shipped: Workload) -> None:
    assert shipped.factory is not None
    model = shipped.factory().train()
    values = losses(model, next(iter(shipped.calibration)), shipped.tasks)
    torch.stack(list(values.values())).sum().backward()
    used = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert all(name.startswith("aux.") for name in used)


def test_pictures_of_input_target_and_prediction(shipped: Workload) -> None:
    assert shipped.render is not None
    inputs, targets = next(iter(shipped.test))
    predictions = predict(shipped.model, inputs, shipped.tasks)
    drawn = [shipped.render("input", inputs[0])]
    drawn += [shipped.render(name, values[name][0]) for name in shipped.task_names for values in (targets, predictions)]
    for picture in drawn:
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert picture.shape[2] == 3
        assert picture.std() > 0
    with pytest.raises(WorkloadError, match="no picture"):
        shipped.render("smell", inputs[0])


def test_the_auxiliary_head_speaks_only_while_training() -> None:
    model = workload("scenes").model
    batch = torch.zeros(2, 3, 64, 64)
    assert "aux" in model.train()(batch)
    assert "aux" not in model.eval()(batch)


def test_missing_and_damaged_weights_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="cannot be read"):
        checkpoint.load(torch.nn.Linear(2, 2), "scenes", tmp_path)
    content = (checkpoint.FOLDER / "scenes.safetensors").read_bytes()
    (tmp_path / "scenes.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(WorkloadError, match="cannot be read"):
        checkpoint.load(torch.nn.Linear(2, 2), "scenes", tmp_path)
    with pytest.raises(WorkloadError, match="do not fit"):
        checkpoint.load(torch.nn.Linear(2, 2), "scenes")
