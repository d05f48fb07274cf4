"""A compressed model's way into a bundle and back into the user's own class."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.compress.compressed import Compressed, CompressedPoint, load_model
from secateur.compress.dataflow import trace
from secateur.core.budget import Budget, Tolerance
from secateur.core.bundle import Bundle
from secateur.core.errors import BundleError
from secateur.core.files import canonical_json
from secateur.core.task import Task, Workload
from secateur.profiles.count import count


class Tied(nn.Module):
    """Two tasks; the same weight serves two layers."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(5, width), nn.BatchNorm1d(width)
        self.one, self.two = nn.Linear(width, width), nn.Linear(width, width)
        self.two.weight = self.one.weight
        self.heads = nn.ModuleDict({"a": nn.Linear(width, 2), "b": nn.Linear(width, 1)})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.two(torch.relu(self.one(x))))
        return {name: head(x) for name, head in self.heads.items()}


class Zero:
    def update(self, prediction: Any, target: Any) -> None: ...

    def compute(self) -> float:
        return 1.0


INPUTS = torch.randn(4, 5)
KEEPS = ([0, 1, 2, 4, 6, 7], [2, 4, 7], [4])


@pytest.fixture
def compressed() -> Compressed:
    model = Tied().eval()
    model.norm.running_mean.normal_()
    tasks = tuple(Task(name, nn.functional.mse_loss, Zero(), "higher") for name in ("a", "b"))
    workload = Workload("tied", model, INPUTS[:1], tasks, train=[], calibration=[], test=[], factory=Tied)
    groups = trace(model, INPUTS)
    points = []
    for keep in KEEPS:
        small = groups.cut({"stem": keep})
        costs = count(small, INPUTS).costs
        points.append(CompressedPoint(small, groups.channel_map({"stem": keep}), costs, {"a": 1.0, "b": 1.0}, 0.0))
    return Compressed(
        workload, "pagcp", Budget.parse("flops<=50%"), Tolerance(), points, 1, count(model, INPUTS).costs,
        {"a": 1.0, "b": 1.0}, [], {}, {}, {}, 0, 0.0,
    )  # fmt: skip


@pytest.fixture
def bundle(compressed: Compressed, tmp_path: Path) -> Bundle:
    return compressed.save(tmp_path / "bundle")


def test_what_is_printed_fits_a_line(compressed: Compressed, tmp_path: Path) -> None:
    flops = 100 * (compressed.costs.flops / compressed.costs_before.flops - 1)
    params = 100 * (compressed.costs.params / compressed.costs_before.params - 1)
    assert repr(compressed.workload) == "<Workload tied: a, b>"
    assert repr(compressed) == (
        f"<Compressed tied by pagcp: FLOPs {flops:+.1f} %, parameters {params:+.1f} %, Δ_MTL +0.00 %, points: 3>"
    )
    bundle = compressed.save(tmp_path / "runs")
    assert repr(bundle) == f"<Bundle {tmp_path / 'runs'}: tied by pagcp, points: 3>"


def test_every_point_of_the_front_loads_bit_by_bit(compressed: Compressed, bundle: Bundle) -> None:
    for number, point in enumerate(compressed.points):
        loaded = load_model(Bundle.open(bundle.path), Tied, number)
        assert type(loaded) is Tied
        assert not loaded.training
        found, expected = loaded(INPUTS), point.model(INPUTS)
        assert all(torch.equal(found[task], expected[task]) for task in expected)
        assert loaded.norm.num_features == len(KEEPS[number])


def test_without_a_number_the_chosen_point_loads(compressed: Compressed, bundle: Bundle) -> None:
    assert load_model(bundle, Tied).stem.out_features == len(KEEPS[compressed.chosen])


def test_tied_weights_are_stored_once_and_stay_tied(bundle: Bundle) -> None:
    loaded = load_model(bundle, Tied)
    assert loaded.one.weight is loaded.two.weight


def test_a_factory_that_returns_the_trained_model_itself_keeps_it(compressed: Compressed, bundle: Bundle) -> None:
    load_model(bundle, lambda: compressed.workload.model)
    assert compressed.workload.model.stem.out_features == 8


@pytest.mark.parametrize("number", [-1, 3])
def test_a_point_that_is_not_there(bundle: Bundle, number: int) -> None:
    with pytest.raises(BundleError, match=f"has no point {number}"):
        load_model(bundle, Tied, number)


@pytest.mark.parametrize("factory", [lambda: Tied(9), lambda: nn.Sequential(nn.Linear(5, 8)), lambda: nn.Linear(5, 2)])
def test_the_wrong_class_is_named(bundle: Bundle, factory: Callable[[], nn.Module]) -> None:
    with pytest.raises(BundleError) as found:
        load_model(bundle, factory)
    assert "class" in found.value.hint or "settings" in found.value.hint


HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "out of range": lambda d: d["kept"]["stem.weight"].update({"0": [0, 8]}),
    "negative": lambda d: d["kept"]["stem.weight"].update({"0": [-1, 2]}),
    "descending": lambda d: d["kept"]["stem.weight"].update({"0": [4, 2, 1]}),
    "twice the same": lambda d: d["kept"]["stem.weight"].update({"0": [2, 2, 3]}),
    "nothing kept": lambda d: d["kept"]["stem.weight"].update({"0": []}),
    "huge": lambda d: d["kept"]["stem.weight"].update({"0": [10**30]}),
    "fractions": lambda d: d["kept"]["stem.weight"].update({"0": [0.5, 2.5]}),
    "text": lambda d: d["kept"]["stem.weight"].update({"0": ["1", "2"]}),
    "nested": lambda d: d["kept"]["stem.weight"].update({"0": [[1], [2]]}),
    "another dimension": lambda d: d["kept"]["stem.weight"].update({"7": [0]}),
    "a negative dimension": lambda d: d["kept"]["stem.weight"].update({"-1": [0]}),
    "no dimension": lambda d: d["kept"]["stem.weight"].update({"x": [0]}),
    "a parameter without shape": lambda d: d["kept"].update({"heads.a.weight": {"0": [0]}}),
    "a parameter that is not there": lambda d: d["shapes"].update({"gone.weight": [8]}),
    "an attribute that is no tensor": lambda d: d["shapes"].update({"stem.forward": [8]}),
    "another shape": lambda d: d["shapes"].update({"stem.weight": [800, 5]}),
    "other channels than the weights": lambda d: d["kept"]["stem.weight"].update({"0": [0]}),
    "a removed module that is not there": lambda d: d.update({"removed_modules": ["no.such"]}),
    "the model itself removed": lambda d: d.update({"removed_modules": [""]}),
    "kept is a list": lambda d: d.update({"kept": [1]}),
    "nothing in it": lambda d: d.clear(),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_channel_map_with_right_hashes_is_refused(bundle: Bundle, change: Callable[..., Any]) -> None:
    name = bundle.manifest.points[1].channels
    file = Path(bundle.path) / name
    document = json.loads(file.read_text())
    change(document)
    rewrite(bundle, name, json.dumps(document).encode())
    opened = Bundle.open(bundle.path)
    with pytest.raises(BundleError):
        load_model(opened, Tied)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"null", b"\xff\xfe", b"[" * 10_000], ids=repr)
def test_a_channel_map_that_is_no_map_is_refused(bundle: Bundle, content: bytes) -> None:
    rewrite(bundle, bundle.manifest.points[1].channels, content)
    opened = Bundle.open(bundle.path)
    with pytest.raises(BundleError):
        load_model(opened, Tied)


def test_truncated_weights_with_right_hashes_are_refused(bundle: Bundle) -> None:
    name = bundle.manifest.points[1].weights
    rewrite(bundle, name, (Path(bundle.path) / name).read_bytes()[:-9])
    with pytest.raises(BundleError, match="damaged"):
        load_model(Bundle.open(bundle.path), Tied)


def rewrite(bundle: Bundle, name: str, content: bytes) -> None:
    """Change a file of a bundle, and the manifest so that its hash and its seal are right."""
    folder = Path(bundle.path)
    old = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / name).write_bytes(content)
    manifest = folder / "manifest.json"
    text = manifest.read_text()
    assert old in text
    document = json.loads(text.replace(old, hashlib.sha256(content).hexdigest()))
    del document["seal"]
    seal = hashlib.sha256(canonical_json(document).encode()).hexdigest()
    manifest.write_text(canonical_json({**document, "seal": seal}))
