"""`secateur farm`: loopback devices that run ncnn for real, a device that is not there, and a run that goes on."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from shell import Secateur

from secateur.core.bundle import Bundle
from secateur.core.errors import ExportError
from secateur.targets.farm.journal import Journal
from secateur.targets.farm.network import Network
from secateur.verbs import farm
from secateur.verbs.measure import Subject

pytest.importorskip("ncnn", reason="ncnn is not installed (the extra [mobile])")
pytest.importorskip("pnnx", reason="pnnx is not installed (the extra [mobile])")
FAKE = Path(__file__).parents[1] / "targets" / "farm" / "fake_runner.py"


@pytest.fixture
def devices(folder: Path) -> Path:
    runner = folder / "runner"
    runner.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE} "$@"\n')
    lines = ["leases: leases", "devices:"]
    for name, key, reach in (
        ("a", "board", "{local: true}"),
        ("b", "board", "{adb: NONE, program: no-adb}"),
        ("c", "phone", "{ssh: nobody@nowhere, program: no-ssh}"),
    ):
        lines.append(f"  - {{name: {name}, key: {key}, reach: {reach}, runner: runner, folder: {folder / name}}}")
    path = folder / "devices.yaml"
    path.write_text("\n".join(lines))
    return path


def test_a_bundle_is_measured_beside_its_original_where_a_device_is_left(
    secateur: Secateur, bundle: Bundle, devices: Path, folder: Path
) -> None:
    outcome = secateur("farm", devices, bundle.path, "-o", "farm.json", "--json")
    assert outcome.code == 0, "one device gave figures"
    (found,) = outcome.document["benchmarks"]
    board, phone = found["results"]
    assert (board["target"], board["source"]) == ("board", "measured")
    assert "on a, threads 1" in board["backend"]
    assert board["latency_ms"]["p10"] <= board["latency_ms"]["median"] <= board["latency_ms"]["p90"]
    assert board["parity"]["max_abs"] < 1e-4
    assert board["speedup_against"] > 0
    assert found["against"]["results"][0]["source"] == "measured"
    assert (phone["target"], phone["source"]) == ("phone", "unavailable")
    assert "no-ssh is not installed" in phone["reason"]
    assert json.loads((folder / "farm.json").read_text()) == outcome.document
    noted = Journal(folder / "farm.json.journal").outcomes()
    assert [name.split("@")[1].split("#")[0] for name in noted] == ["board"], "the phone's is tried again"
    secateur("farm", devices, bundle.path, "-o", "farm.json").refused(2, "stopped", "--resume")
    again = secateur("farm", devices, bundle.path, "-o", "farm.json", "--resume", "--json")
    assert again.document["benchmarks"][0]["results"][0] == board, "nothing was measured twice"


def test_a_model_that_ncnn_cannot_run_does_not_keep_the_others_from_it(
    secateur: Secateur, bundle: Bundle, devices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = farm._networks

    def refuses(subjects: Mapping[str, Subject]) -> Mapping[str, Network]:
        if "other" in subjects:
            raise ExportError("pnnx knows no such operator", "leave it out")
        return networks(subjects)

    other = shutil.copytree(bundle.path, "other")
    monkeypatch.setattr(farm, "_networks", refuses)
    outcome = secateur("farm", devices, bundle.path, other, "-o", "farm.json", "--json")
    assert outcome.code == 0, outcome.err
    assert "other is not measured: pnnx knows no such operator" in outcome.err
    fine, refused = outcome.document["benchmarks"]
    assert fine["results"][0]["source"] == "measured"
    assert {each["source"] for each in refused["results"]} == {"unavailable"}
    assert refused["results"][0]["reason"] == "pnnx knows no such operator"
    secateur("farm", devices, other, "--force").refused(2, "pnnx knows no such operator")


def test_nothing_measured_is_exit_code_4(secateur: Secateur, bundle: Bundle, devices: Path) -> None:
    devices.write_text(devices.read_text().replace("{local: true}", "{adb: NONE, program: no-adb}"))
    secateur("farm", devices, bundle.path).refused(4, "no-adb is not installed")


def test_mistakes_are_exit_code_2(secateur: Secateur, bundle: Bundle, devices: Path) -> None:
    secateur("farm", "none.yaml", bundle.path).refused(2, "none.yaml")
    secateur("farm", devices, bundle.path, bundle.path).refused(2, "two models")
