"""Elastic bundles that ship: the script that trains them, and that the committed one keeps its word."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from elastic_tiny import FAST, workload

from secateur.compress.slimmable import Settings, load_elastic
from secateur.compress.slimmable.tabulate import Judge
from secateur.core import shipped
from secateur.core.bundle import Bundle
from secateur.core.elastic.files import is_elastic, read_table
from secateur.core.errors import BundleError, OutputError
from secateur.core.predict import evaluate
from secateur.verbs import train_elastic
from secateur.verbs.export import export
from secateur.verbs.report import report
from secateur.verbs.select import select
from secateur.workloads import workload as workload_by_name

SETTINGS = replace(FAST, epochs=0, widths=(0.5,), exported=2, half=True, recalibration_batches=2)


@pytest.mark.slow
def test_a_shipped_bundle_is_trained_found_by_name_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "shipping"
    (package / "bundles").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(shipped, "PLACE", "shipping")
    monkeypatch.setattr(train_elastic, "SHIPPED", {"tiny-elastic": ("elastic_tiny:workload", SETTINGS)})
    train_elastic.main(["tiny-elastic", "--threads", "1", "--output", str(package / "bundles")])

    bundle = shipped.bundle_of("tiny-elastic")
    assert is_elastic(bundle)
    assert bundle.verify() == []
    assert "cpu" in read_table(bundle).latency
    found = workload()
    elastic, table, statistics = load_elastic(bundle, found)
    assert statistics
    parameters = sum(p.numel() for p in found.model.parameters())
    assert bundle.file("points/00/weights.safetensors").stat().st_size < 3.5 * parameters + 6000
    for parameter in elastic.parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, parameter.half().float())
    metrics = evaluate(elastic.static(elastic.space.largest), found.test, found.tasks)
    assert metrics == pytest.approx(bundle.manifest.point.metrics, rel=1e-5)
    assert table.exported


def test_names_that_do_not_ship_are_paths() -> None:
    assert shipped.shipped("no-such-bundle") is None
    assert shipped.shipped("../weights") is None
    with pytest.raises(BundleError, match="is no bundle"):
        shipped.bundle_of("no-such-bundle")


@pytest.fixture(scope="module")
def scenes() -> Bundle:
    return shipped.bundle_of("scenes-elastic")


def test_the_shipped_bundle_is_whole_small_and_spans_a_wide_range(scenes: Bundle) -> None:
    """The goals that it was made for: at most 5 MB, 16x in FLOPs; and the recipe is the one that the script names."""
    assert scenes.verify() == []
    assert sum(file.stat().st_size for file in scenes.path.rglob("*") if file.is_file()) <= 5e6
    table = read_table(scenes)
    flops = table.costs["flops"]
    least, most = (flops.of(row, dict.fromkeys(table.tasks, d)) for row, d in ((0, 0), (-1, -1)))
    assert most >= 16 * least
    assert table.latency["cpu"].source == "measured"
    assert Settings.from_json(scenes.manifest.settings) == train_elastic.SHIPPED["scenes-elastic"][1]


def test_more_flops_give_better_metrics_of_every_task(scenes: Bundle) -> None:
    found = [select(scenes, f"flops<={share}%") for share in (4, 8, 16, 32, 64, 100)]
    assert all(each.met for each in found)
    table = read_table(scenes)
    for task, better in table.better.items():
        values = [each.choice.metrics[task] for each in found]
        assert values == sorted(values, reverse=better == "lower"), task


@pytest.mark.slow
def test_the_shipped_tables_metrics_are_those_of_the_shipped_weights(scenes: Bundle) -> None:
    workload = workload_by_name("scenes")
    elastic, table, _ = load_elastic(scenes, workload)
    judge = Judge(elastic, workload, Settings.from_json(scenes.manifest.settings), scenes.manifest.seed)
    found = judge.metrics(elastic.space.smallest)
    assert found == pytest.approx({task: values[0, 0] for task, values in table.metrics.items()}, rel=0.01)


@pytest.mark.parametrize("change", [report, lambda bundle: export(bundle, "onnx")])
def test_the_one_that_ships_is_never_written_into(change: Callable[[str], object]) -> None:
    before = shipped.bundle_of("scenes-elastic").manifest
    with pytest.raises(OutputError, match="scenes-elastic ships with Secateur"):
        change("scenes-elastic")
    bundle = shipped.bundle_of("scenes-elastic")
    assert bundle.manifest == before
    assert bundle.verify() == []


def test_a_copy_of_it_is_the_users_own(tmp_path: Path) -> None:
    copy = shutil.copytree(shipped.bundle_of("scenes-elastic").path, tmp_path / "mine")
    assert report(copy).is_file()
    assert Bundle.open(copy).verify() == []
