"""Published models as torchvision and timm define them (benchmarks/coverage.py goes through all of them)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.zoo

SAMPLE = {
    ("tv", "resnet18"): 12,
    ("tv", "mobilenet_v3_small"): 1,
    ("tv", "swin_t"): 12,
    ("tv", "vit_b_32"): 12,
    ("timm", "vit_tiny_patch16_224"): 37,
    ("timm", "convnext_atto"): 12,
    ("timm", "resnest26d"): 1,
    ("timm", "skresnet18"): 1,
}
"""(library, model) → at least so many prunable groups."""


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("key", SAMPLE, ids=lambda key: "-".join(key))
def test_half_of_every_group_is_cut_right(coverage: ModuleType, key: tuple[str, str]) -> None:
    row = coverage.examine(*key)
    assert row["outcome"] == "ok"
    assert row["prunable"] >= SAMPLE[key]
    assert row["share"] >= 0.9
