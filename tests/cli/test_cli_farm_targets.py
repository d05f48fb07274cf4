"""`secateur benchmark --target farm:...`: measured on a loopback device, predicted where none is reached, said so."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shell import Secateur

from secateur.core.bundle import Bundle
from secateur.targets.farm.lease import Leases

FAKE = Path(__file__).parents[1] / "targets" / "farm" / "fake_runner.py"
PREDICTED = "mobile:raspberry-pi-5"


def needs_ncnn() -> None:
    pytest.importorskip("ncnn", reason="ncnn is not installed (the extra [mobile])")
    pytest.importorskip("pnnx", reason="pnnx is not installed (the extra [mobile])")


@pytest.fixture
def farm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two boards, of which one answers; a phone and a lone board that do not."""
    runner(folder, f'exec {sys.executable} {FAKE} "$@"')
    lines = ["leases: leases", "devices:"]
    for name, key, reach, target in (
        ("a", "board", "{local: true}", PREDICTED),
        ("b", "board", "{adb: NONE, program: no-adb}", PREDICTED),
        ("c", "phone", "{ssh: nobody@nowhere, program: no-ssh}", PREDICTED),
        ("d", "lone", "{adb: NONE, program: no-adb}", None),
    ):
        known = f", target: {target}" if target else ""
        lines.append(
            f"  - {{name: {name}, key: {key}, reach: {reach}, runner: runner, folder: {folder / name}{known}}}"
        )
    path = folder / "farm.yaml"
    path.write_text("\n".join(lines))
    monkeypatch.setenv("SECATEUR_FARM", str(path))
    return path


def runner(folder: Path, script: str) -> None:
    path = folder / "runner"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.usefixtures("farm")
def test_a_bundle_is_measured_where_a_device_answers_and_predicted_where_none_does(
    secateur: Secateur, bundle: Bundle
) -> None:
    needs_ncnn()
    outcome = secateur("benchmark", bundle.path, "--target", "farm:board,farm:phone,farm:lone", "--json")
    assert outcome.code == 0, outcome.err
    board, phone, lone = outcome.document["results"]
    assert (board["target"], board["source"], board["basis"]) == ("farm:board", "measured", None)
    assert "on a, threads 1" in board["backend"]
    assert board["latency_ms"]["p10"] <= board["latency_ms"]["median"] <= board["latency_ms"]["p90"]
    assert board["speedup_against"] > 0
    assert board["parity"]["max_abs"] < 1e-4
    assert outcome.document["against"]["results"][0]["source"] == "measured"
    assert (phone["target"], phone["source"], phone["basis"]) == ("farm:phone", "predicted", "published")
    assert "no-ssh is not installed" in phone["reason"]
    assert phone["error_pct"] > 0
    same = secateur("benchmark", bundle.path, "--target", PREDICTED, "--json").document["results"][0]
    assert phone["latency_ms"] == same["latency_ms"]
    assert (lone["source"], lone["latency_ms"]) == ("unavailable", None), "nothing predicts it"
    assert "no-adb is not installed" in lone["reason"]


@pytest.mark.slow
@pytest.mark.usefixtures("farm")
def test_a_latency_budget_is_predicted_while_pruning_and_judged_on_the_device(secateur: Secateur) -> None:
    needs_ncnn()
    quick = ("--rounds", "1", "--epochs", "1", "--drop", "90%")
    made = secateur("compress", "toys:pair", "--budget", "latency<=95%", *quick, "--target", "farm:board", "-o", "run")
    assert made.code in (0, 3), made.err  # so small a network may be no faster
    written = Bundle.open(Path("run")).manifest
    assert written.on_target is not None
    assert (written.on_target.target, written.on_target.source) == ("farm:board", "measured")
    told = secateur("select", "run", "--target", "farm:board", "--budget", "flops<=100%").out
    assert "latency on farm:board, measured when the bundle was made" in told


@pytest.mark.usefixtures("farm")
def test_a_point_is_chosen_by_a_prediction_that_is_called_one(secateur: Secateur, bundle: Bundle) -> None:
    needs_ncnn()
    told = secateur("select", bundle.path, "--target", "farm:phone", "--budget", "latency<=100%").out
    assert "latency on farm:phone, predicted" in told


@pytest.mark.usefixtures("farm")
def test_people_are_told_why_it_is_a_prediction(secateur: Secateur, bundle: Bundle) -> None:
    needs_ncnn()
    shown = " ".join(secateur("benchmark", bundle.path, "--target", "farm:phone").out.split())
    assert "farm:phone is predicted from published figures of this device; not measured: farm:phone:" in shown
    assert "no-ssh is not installed" in shown


def test_nothing_runs_when_a_prediction_is_asked_for(secateur: Secateur, bundle: Bundle, farm: Path) -> None:
    runner(farm.parent, f"touch {farm.parent / 'ran'}; exit 1")
    (found,) = secateur("benchmark", bundle.path, "--target", "farm:a", "--predict", "--json").document["results"]
    assert (found["target"], found["source"]) == ("farm:a", "predicted")
    assert not (farm.parent / "ran").exists()


def test_a_device_that_computes_something_else_is_no_reason_to_predict(
    secateur: Secateur, bundle: Bundle, farm: Path
) -> None:
    needs_ncnn()
    flip = "for each in *.out; do tr '\\000-\\377' '\\377\\000-\\376' < $each > x && mv x $each; done"
    runner(farm.parent, f'{sys.executable} {FAKE} "$@" || exit 1\n{flip}')
    outcome = secateur("benchmark", bundle.path, "--target", "farm:a")
    outcome.refused(2, "a computes something else")


@pytest.mark.usefixtures("farm")
def test_an_onnx_file_is_predicted_as_nothing_makes_a_network_of_ncnn_from_it(
    secateur: Secateur, bundle: Bundle, folder: Path
) -> None:
    needs_ncnn()
    secateur("export", bundle.path, "--to", "onnx", "-o", folder / "out")
    (file,) = (folder / "out").rglob("*.onnx")
    (found,) = secateur("benchmark", file, "--target", "farm:board", "--json").document["results"]
    assert (found["source"], found["basis"]) == ("predicted", "published")
    assert "is ONNX" in found["reason"]
    secateur("benchmark", file, "--target", "farm:lone").refused(2, "is ONNX")


def test_mistakes_are_one_line(secateur: Secateur, bundle: Bundle, farm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secateur("benchmark", bundle.path, "--target", "farm:x").refused(2, "farm:x", "farm:board", "farm:d")
    text = farm.read_text()
    farm.write_text(text.replace(PREDICTED, "cpu"))
    secateur("benchmark", bundle.path, "--target", "farm:board").refused(2, "cpu is run by onnxruntime")
    farm.write_text(text.replace(PREDICTED, "mobile:raspberry-pi-4", 1))
    secateur("benchmark", bundle.path, "--target", "farm:board").refused(2, "key board", "differ in target")
    broken = secateur("targets", "--json").document["targets"]
    assert next(each for each in broken if each["name"] == "farm")["status"] == "unavailable"
    monkeypatch.setenv("SECATEUR_FARM", str(farm.with_name("none.yaml")))
    secateur("benchmark", bundle.path, "--target", "farm:board").refused(2, "no farm file", "SECATEUR_FARM")


@pytest.mark.usefixtures("farm")
def test_targets_lists_the_farm(secateur: Secateur) -> None:
    needs_ncnn()
    listed = {each["name"]: each for each in secateur("targets", "--json").document["targets"]}
    assert [name for name in listed if name.startswith("farm:")] == ["farm:board", "farm:phone", "farm:lone"]
    assert (listed["farm:board"]["status"], listed["farm:board"]["kind"]) == ("measured", "mobile")
    assert "a, b" in listed["farm:board"]["reason"]
    (single,) = secateur("targets", "farm:d", "--json").document["targets"]
    assert single["name"] == "farm:d"


@pytest.mark.usefixtures("farm")
def test_without_ncnn_it_is_predicted_or_says_what_to_install(
    secateur: Secateur, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "pnnx" else known(name))
    listed = {each["name"]: each for each in secateur("targets", "--json").document["targets"]}
    assert (listed["farm:board"]["status"], listed["farm:lone"]["status"]) == ("predicted", "unavailable")
    assert "secateur[mobile]" in listed["farm:lone"]["how"]
    (found,) = secateur("benchmark", bundle.path, "--target", "farm:board", "--json").document["results"]
    assert found["source"] == "predicted"
    assert found["reason"] in [f"not measured: {package} is not installed" for package in ("ncnn", "pnnx")]
    secateur("benchmark", bundle.path, "--target", "farm:lone").refused(4, "is not installed", "secateur[mobile]")


def test_a_benchmark_that_is_killed_leaves_its_device_to_the_next(
    secateur: Secateur, bundle: Bundle, farm: Path, folder: Path
) -> None:
    needs_ncnn()
    runner(folder, f"touch {folder / 'started'}; sleep 60")
    command = [sys.executable, "-m", "secateur", "benchmark", str(bundle.path), "--target", "farm:a"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    first = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, start_new_session=True)
    while not (folder / "started").exists():
        assert first.poll() is None, first.stderr and first.stderr.read()
        time.sleep(0.05)
    assert [ticket.held for ticket in Leases(folder / "leases").tickets()] == [True]
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    runner(folder, f'exec {sys.executable} {FAKE} "$@"')
    (found,) = secateur("benchmark", bundle.path, "--target", "farm:a", "--json").document["results"]
    assert found["source"] == "measured"
    assert Leases(folder / "leases").tickets() == []
