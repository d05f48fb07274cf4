"""The table of targets is honest and answers at once."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from secateur.core.errors import DeviceError
from secateur.targets.device import Device, get
from secateur.targets.registry import TargetStatus, device_status, status, status_of
from secateur.verbs.measure import places


def test_cpu_is_measured_and_the_rest_says_why_not() -> None:
    table = {line.name: line for line in status()}
    assert table["cpu"].as_json() == {
        "name": "cpu",
        "kind": "cpu",
        "status": "measured",
        "reason": None,
        "how": None,
    }
    for kind in ("gpu", "mobile", "fpga"):  # users name kinds
        assert table[kind].reason or table[kind].status == "measured"
    assert table["fpga"].status == "predicted"
    assert "as fpga:zcu102" in str(table["fpga"].reason)
    assert table["fpga"].how


def test_without_its_runtime_cpu_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    cpu = next(line for line in status() if line.name == "cpu")
    assert cpu.status == "unavailable"
    assert "pip install onnxruntime" in (cpu.how or "")


def test_a_misspelt_target_is_unknown_also_where_its_kind_needs_what_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (mobile,) = places("mobile")
    assert isinstance(mobile, TargetStatus)
    with pytest.raises(DeviceError, match='unknown target "mobile:nokia"'):
        places("mobile:nokia")


def test_runtimes_of_this_machine_are_measured_or_say_what_brings_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("pnnx", "openvino") else name)
    table = {line.name: line for line in status()}
    for name, package, extra in (("mobile", "pnnx", "mobile"), ("cpu:openvino", "openvino", "openvino")):
        assert table[name].reason == f"{package} is not installed"
        assert f"secateur[{extra}]" in str(table[name].how)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert [line.status for line in status() if line.name in ("mobile", "cpu:openvino")] == ["measured"] * 2


def test_a_device_without_a_latency_model_is_unavailable() -> None:
    board = Device(name="board", kind="fpga", title="A board", runtime="onnxruntime")
    found = device_status(board)
    assert (found.status, found.reason) == ("unavailable", "its file names no latency model")
    assert device_status(get("cpu")).status == "measured"


def test_a_file_with_a_mistake_hides_no_other_and_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECATEUR_DEVICES", str(tmp_path))
    (tmp_path / "mobile.typo.yaml").write_text("{name: mobile:typo, kind: mobile, title: Typo, runtime: ncn}")
    table = {line.name: line for line in status()}
    assert (table["mobile:typo"].kind, table["mobile:typo"].status) == ("mobile", "unavailable")
    assert "runtime" in str(table["mobile:typo"].reason)
    assert table["cpu"].status == status_of("cpu").status == "measured"
    with pytest.raises(DeviceError, match="runtime"):
        status_of("mobile:typo")


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from secateur.targets.registry import status; status();"
        "print([name for name in ('torch', 'onnx', 'onnxruntime', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]"
