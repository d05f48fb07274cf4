"""The script that trains the bundles that ship: half the bytes, found by name, and the same model after loading."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from elastic_tiny import FAST, workload

from secateur.compress.slimmable import load_elastic
from secateur.core import shipped
from secateur.core.bundle import Bundle
from secateur.core.elastic.files import is_elastic, read_table
from secateur.core.predict import evaluate
from secateur.verbs import train_elastic

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
    with pytest.raises(Exception, match="is no bundle"):
        shipped.bundle_of("no-such-bundle")
    assert Bundle
