"""Extraction through the verbs: bundles with proof, composition with PAGCP, another point without retraining."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from moe_models import SIZE, m3vit, workload

import secateur as sc
from secateur.compress.compressed import load_model
from secateur.compress.experts import Settings
from secateur.core.errors import BudgetError
from secateur.verbs.extract import extract_to_bundle
from secateur.verbs.report import history_of as bundle_history


def test_the_bundle_is_exported_with_proof_and_another_point_can_be_selected(tmp_path: Path) -> None:
    bundle = extract_to_bundle(
        workload(), tmp_path / "out", "depth", "params<=59%", "90%", settings=Settings(epochs=0, rounds=2),
    )  # fmt: skip
    manifest = bundle.manifest
    assert manifest.method == "experts"
    assert [task.name for task in manifest.tasks] == ["depth"]
    (artefact,) = manifest.artefacts
    assert artefact.max_abs < 1e-4
    assert sc.verify(bundle, workload=workload()).parity
    chosen = sc.select(bundle, "params<=70%", workload=workload())
    kept = bundle_history(bundle)["experts"]["points"][chosen.point]["kept"]
    assert chosen.widths == {path: len(numbers) for path, numbers in kept.items()}
    report = bundle.file("report.html").read_text()
    assert "Experts by task" in report
    assert "its costs for all its tasks, its latency for depth alone" in report


def test_pagcp_prunes_what_an_extraction_left(tmp_path: Path) -> None:
    both = sc.extract(workload(), "depth", "flops<=24%", "90%", epochs=0, rounds=1, prune=True)
    assert both.method == "experts,pagcp"
    assert both.budget_met, both.misses
    assert [point.costs.flops for point in both.points] == sorted((p.costs.flops for p in both.points), reverse=True)
    bundle = both.save(tmp_path / "both")
    x = torch.rand(1, 3, SIZE, SIZE)
    for number, point in enumerate(both.points):
        assert torch.equal(load_model(bundle, m3vit, number)(x, "depth"), point.model(x, "depth"))
    with pytest.raises(BudgetError, match="no budget is given to prune to"):
        sc.extract(workload(), "depth", prune=True)
