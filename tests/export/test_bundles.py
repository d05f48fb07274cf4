"""export_bundle: a bundle gains proven artefacts as a whole, or stays as it was."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from export_models import OddChannels, make_workload

from secateur.core.bundle import Bundle, CostsEntry, Manifest, Point, TaskEntry, new_bundle
from secateur.core.errors import ExportError, MissingExtraError, ParityError
from secateur.core.task import Workload
from secateur.export.bundles import export_bundle
from secateur.export.onnx_session import OnnxModel

COSTS = CostsEntry(flops=2, macs=1, params=1, peak_memory_bytes=1, size_bytes=1)


@pytest.fixture
def workload() -> Workload:
    torch.manual_seed(0)
    return make_workload(OddChannels().eval())


@pytest.fixture
def bundle(tmp_path: Path, workload: Workload) -> Bundle:
    path = tmp_path / "bundle"
    metrics = dict.fromkeys(workload.task_names, 1.0)
    with new_bundle(path) as (folder, finish):
        (folder / "history.json").write_text("{}")
        point = Point(weights="w", channels="c", costs=COSTS, metrics=metrics, delta_mtl=0.0)
        manifest = Manifest(
            method="pagcp",
            workload="tiny",
            reference=None,
            tasks=[TaskEntry(name=name, better="lower") for name in workload.task_names],
            budget=[],
            tolerance="1%",
            budget_met=True,
            before=COSTS,
            metrics_before=metrics,
            points=[point],
            chosen=0,
            seed=0,
            command="",
            seconds=0.0,
            created="",
            machine={},
            versions={},
        )
        finish(manifest)
    return Bundle.open(path)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_artefact_is_added_with_its_proof(bundle: Bundle, workload: Workload) -> None:
    exported = export_bundle(bundle, workload.model, workload, ["onnx"])
    assert exported.verify() == []
    (artefact,) = exported.manifest.artefacts
    assert (artefact.format, artefact.path, artefact.samples) == ("onnx", "artefacts/model.onnx", 6)
    assert artefact.max_abs < 1e-5
    assert set(artefact.metrics) == set(workload.task_names)
    assert tuple(OnnxModel(exported.checked_file(artefact.path)).tasks) == workload.task_names


def test_exporting_again_replaces_the_artefact(bundle: Bundle, workload: Workload) -> None:
    first = export_bundle(bundle, workload.model, workload, ["onnx"])
    other = OddChannels().eval()
    again = export_bundle(first, other, workload, ["onnx"])
    assert again.verify() == []
    assert len(again.manifest.artefacts) == 1
    assert again.manifest.files["artefacts/model.onnx"] != first.manifest.files["artefacts/model.onnx"]


def test_an_artefact_that_fails_parity_changes_nothing(
    bundle: Bundle, workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(bundle.path)
    zeros = lambda self, x: {t: np.zeros((len(x[0]), 2, 16, 16), np.float32) for t in self.tasks}  # noqa: E731
    monkeypatch.setattr(OnnxModel, "run", zeros)
    with pytest.raises(ParityError):
        export_bundle(bundle, workload.model, workload, ["onnx"])
    assert content(bundle.path) == before
    assert [path.name for path in bundle.path.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("to", "said"), [(["elsewhere"], '"elsewhere"'), (["onnx", "ONNX"], '"ONNX"'), ([], "no format")]
)
def test_an_unknown_format_lists_the_known_ones(bundle: Bundle, workload: Workload, to: list[str], said: str) -> None:
    before = content(bundle.path)
    with pytest.raises(ExportError, match=said) as caught:
        export_bundle(bundle, workload.model, workload, to)
    assert "onnx" in caught.value.hint
    assert content(bundle.path) == before


def test_a_format_whose_package_is_missing_leaves_the_others(
    bundle: Bundle, workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("pnnx", "ncnn") else found(name))
    with pytest.warns(UserWarning, match=r"ncnn is left out: (pnnx|ncnn) is not installed"):
        exported = export_bundle(bundle, workload.model, workload, ["ncnn", "onnx"])
    assert [each.format for each in exported.manifest.artefacts] == ["onnx"]
    before = content(bundle.path)
    with pytest.raises(MissingExtraError, match="is not installed") as caught:
        export_bundle(exported, workload.model, workload, ["ncnn"])
    assert caught.value.exit_code == 4
    assert content(bundle.path) == before
