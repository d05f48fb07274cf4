"""A farm's device that runs TVM: measured over RPC on loopback, and what is said when nobody answers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from shell import Secateur
from tvm_service import free_port, served

from secateur.core.bundle import Bundle

needs_tvm = pytest.mark.skipif(not importlib.util.find_spec("tvm"), reason="needs secateur[tvm]")


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def farm(folder: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = folder / "farm.yaml"
    reach = f"{{rpc: '127.0.0.1:{port}'}}"
    path.write_text(
        f"leases: leases\ndevices:\n  - {{name: t, key: tvm-board, reach: {reach}, limit_s: 0.2, warmup_s: 0.1}}\n"
    )
    monkeypatch.setenv("SECATEUR_FARM", str(path))
    return path


@needs_tvm
@pytest.mark.slow
@pytest.mark.usefixtures("farm")
def test_a_bundle_and_any_onnx_file_are_measured_over_rpc(
    secateur: Secateur, bundle: Bundle, folder: Path, port: int
) -> None:
    secateur("export", bundle.path, "--to", "onnx", "-o", folder / "out")
    (file,) = (folder / "out").rglob("*.onnx")
    with served("rpc_server", port):
        both = secateur("benchmark", bundle.path, "--target", "farm:tvm-board", "--json")
        assert both.code == 0, both.err
        (found,) = both.document["results"]
        assert (found["target"], found["source"]) == ("farm:tvm-board", "measured")
        assert found["backend"].startswith("tvm ")
        assert "on t, threads 1" in found["backend"]
        assert found["speedup_against"] > 0
        assert found["parity"]["max_abs"] < 1e-4
        assert both.document["against"]["results"][0]["source"] == "measured"
        (alone,) = secateur("benchmark", file, "--target", "farm:t", "--json").document["results"]
        assert (alone["source"], alone["speedup_against"]) == ("measured", None)


@needs_tvm
@pytest.mark.usefixtures("farm")
def test_nobody_there_is_exit_code_4(secateur: Secateur, bundle: Bundle, port: int) -> None:
    secateur("benchmark", bundle.path, "--target", "farm:tvm-board").refused(4, f"127.0.0.1:{port}", "rpc_server")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("runner: runner", "neither runner nor target"),
        ("target: mobile:raspberry-pi-5", "neither runner nor target"),
        ("reach: {rpc: nowhere}", "rpc"),
        ("reach: {rpc: 'a:1', local: true}", "name one of"),
        ("reach: {local: true}", "runner: required"),
        ("reach: {local: true}, runner: farm.yaml, arch: aarch64", "arch"),
    ],
)
def test_mistakes_in_the_file_are_told(secateur: Secateur, bundle: Bundle, farm: Path, more: str, says: str) -> None:
    known = "reach: {rpc: 'a:1'}, " if "reach" not in more else ""
    farm.write_text(f"devices:\n  - {{name: t, key: t, {known}{more}}}\n")
    secateur("benchmark", bundle.path, "--target", "farm:t").refused(2, "farm.yaml", says)


def test_farm_says_that_it_measures_with_ncnn(secateur: Secateur, bundle: Bundle, farm: Path) -> None:
    secateur("farm", farm, bundle.path).refused(2, "t runs tvm", "--target farm:tvm-board")
