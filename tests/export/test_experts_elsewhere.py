"""Mixtures in formats that know no routing: the same numbers where no choice is left, one clear line where one is."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from toy_metrics import AbsoluteError

import secateur as sc
from secateur.compress.experts.cutting import expert_map
from secateur.compress.experts.layers import find
from secateur.core.errors import ExportError
from secateur.core.task import Task, Workload
from secateur.export.bundles import export_all
from secateur.export.formats import Exported, Options, Request
from secateur.workloads.models.m3vit import M3ViT

NEEDS = {"ncnn": ("ncnn", "pnnx"), "tvm": ("tvm",), "tensorrt": ("tensorrt_rtx",), "openvino": ("openvino",)}


def only(*formats: str) -> list[object]:
    """The formats, each skipped where its packages are not installed."""
    missing = {name: [each for each in NEEDS[name] if importlib.util.find_spec(each) is None] for name in formats}
    return [
        pytest.param(name, marks=pytest.mark.skipif(bool(missing[name]), reason=f"needs {', '.join(missing[name])}"))
        for name in formats
    ]


def workload(left: dict[str, list[int]], top_k: int) -> Workload:
    """One task of a small M³ViT, of whose experts some are left."""
    torch.manual_seed(0)
    model = M3ViT(
        (16, 16), {"depth": 1}, width=16, depth=4, heads=2, patch=4, ratio=2.0, experts=6, top_k=top_k, channels=8
    ).eval()
    expert_map(model, find(model), left).apply(model)
    data = []
    for _ in range(2):
        x = torch.rand(3, 3, 16, 16)
        data.append((x, {"depth": torch.zeros(3, 1, 16, 16)}))
    task = Task("depth", F.l1_loss, AbsoluteError(), "lower")
    return Workload("mixture", model, torch.zeros(1, 3, 16, 16), (task,), data, data, data)


def exported(format_name: str, given: Workload, folder: Path) -> Exported:
    options = Options(capabilities=(86,) if format_name == "tensorrt" else ())
    ((_, made),) = export_all(given.model, given, [Request(format_name, options)], folder)
    return made


ONE = {"blocks.1.mlp": [3], "blocks.3.mlp": [0]}
FIXED = {"blocks.1.mlp": [1, 4], "blocks.3.mlp": [0, 5]}
ROUTED = {"blocks.1.mlp": [1, 4], "blocks.3.mlp": [0, 2, 5]}


@pytest.mark.parametrize("name", only("ncnn", "tvm", "openvino"))
def test_without_a_choice_every_format_computes_what_torch_does(name: str, tmp_path: Path) -> None:
    made = exported(name, workload(FIXED, 2), tmp_path)
    assert made.parity is not None
    assert made.parity.samples == 6
    assert made.parity.max_abs < 2e-5


@pytest.mark.parametrize("name", only("ncnn"))
def test_so_does_a_single_expert(name: str, tmp_path: Path) -> None:
    made = exported(name, workload(ONE, 1), tmp_path)
    assert made.parity is not None
    assert made.parity.max_abs < 2e-5


@pytest.mark.parametrize("name", only("tensorrt"))
def test_an_engine_is_built_where_no_choice_is_left(name: str, tmp_path: Path) -> None:
    assert exported(name, workload(FIXED, 2), tmp_path).written.path.stat().st_size > 1000


@pytest.mark.parametrize("name", only("openvino"))
def test_openvino_routes(name: str, tmp_path: Path) -> None:
    made = exported(name, workload(ROUTED, 2), tmp_path)
    assert made.parity is not None
    assert made.parity.max_abs < 2e-5


@pytest.mark.parametrize("name", only("ncnn", "tvm", "tensorrt"))
def test_where_tokens_are_routed_the_format_says_that_it_cannot(name: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot route tokens to experts") as caught:
        exported(name, workload(ROUTED, 2), tmp_path)
    assert "as many experts are left as a token chooses" in caught.value.hint
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.slow
@pytest.mark.parametrize("name", only("ncnn"))
def test_what_the_original_cannot_be_on_a_target_the_extracted_model_is_measured_without(name: str) -> None:
    routed, small = workload(ROUTED, 2), workload(FIXED, 2)
    found = sc.benchmark(small, "mobile", against=routed)
    (profile,), (other,) = found.profiles, found.profiles_against
    assert (profile.source, other.source) == ("measured", "unavailable")
    assert profile.speedup_against is None
    assert "cannot route tokens" in str(other.reason)
    with pytest.raises(ExportError, match="each chooses 2 of 3"):
        sc.benchmark(routed, "mobile", against=small)
