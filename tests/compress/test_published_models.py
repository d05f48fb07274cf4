"""Published models as torchvision and timm define them (benchmarks/coverage.py goes through all of them)."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.zoo

SAMPLE = {
    ("tv", "resnet18"): 12,
    ("tv", "mobilenet_v3_small"): 27,
    ("tv", "swin_t"): 20,
    ("tv", "vit_b_32"): 14,
    ("tv", "regnet_y_800mf"): 47,
    ("tv", "efficientnet_b0"): 40,
    ("tv", "densenet121"): 120,
    ("timm", "vit_tiny_patch16_224"): 37,
    ("timm", "deit_tiny_patch16_224"): 37,
    ("timm", "cait_xxs24_224"): 52,
    ("timm", "convnext_atto"): 16,
    ("timm", "resnest26d"): 31,
    ("timm", "skresnet18"): 20,
    ("timm", "res2net50_26w_4s"): 45,
    ("timm", "dpn68"): 49,
    ("timm", "dla34"): 25,
    ("timm", "hrnet_w18_small"): 45,
    ("timm", "ghostnet_050"): 31,
    ("timm", "mobilevit_xxs"): 52,
    ("timm", "edgenext_xx_small"): 16,
    ("timm", "fastvit_s12"): 14,
    ("timm", "xcit_nano_12_p8_224"): 18,
    ("timm", "pvt_v2_b0"): 14,
    ("timm", "twins_svt_small"): 25,
    ("timm", "swinv2_cr_tiny_224"): 32,
    ("timm", "convmixer_768_32"): 33,
    ("timm", "maxvit_nano_rw_256"): 33,
    ("timm", "levit_384_s8"): 61,
}
"""(library, model) → prunable groups, as benchmarks/results/coverage.json has them: one of each family."""


@pytest.fixture(scope="module")
def coverage() -> Iterator[ModuleType]:
    """benchmarks/coverage.py, which finds its neighbours as a script does."""
    folder = Path(__file__).parents[2] / "benchmarks"
    spec = importlib.util.spec_from_file_location("coverage_benchmark", folder / "coverage.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        spec.loader.exec_module(module)
        yield module


@pytest.mark.slow
@pytest.mark.parametrize("key", SAMPLE, ids=lambda key: "-".join(key))
def test_half_of_every_group_is_cut_right(coverage: ModuleType, key: tuple[str, str]) -> None:
    row = coverage.examine(*key)
    assert row["outcome"] == "ok"
    assert row["prunable"] == SAMPLE[key]
    assert row["share"] >= 0.9
