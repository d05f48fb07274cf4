"""Devices: what is described in YAML is read with its units, and every mistake names file and key."""

from __future__ import annotations

import re
from math import prod
from pathlib import Path
from typing import Any

import pytest

from secateur.core.errors import DeviceError
from secateur.export.hls_resources import BOARDS
from secateur.profiles.latency.soft_core import CORES, SoftCore
from secateur.targets.device import Device, SoftCoreLatency, StreamedLatency, get, names

FULL = """
name: my-board
kind: cpu
title: My board
runtime: onnxruntime
description: four cores, passively cooled
settings: {threads: 4, batch: 2}
compute: {value: "38.4 GFLOP/s", source: data sheet, page 3}
bandwidth: {value: "12.8 GB/s", source: data sheet}
memory: {value: 2GiB, source: data sheet}
power: {value: "7.5 W", source: wall meter}
""".replace("data sheet, page 3", '"data sheet, page 3"')


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "board.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_every_device_of_this_version_is_sound() -> None:
    assert "cpu" in names()
    assert [get(name).name for name in names()] == names()
    assert get("cpu").kind == "cpu"


def figures(device: Device) -> dict[str, Any]:
    kinds = ("compute", "bandwidth", "memory", "power", "energy_per_mac", "energy_per_byte")
    return {kind: getattr(device, kind) for kind in kinds if getattr(device, kind) is not None}


@pytest.mark.parametrize("device", map(get, names()), ids=lambda each: each.name)
def test_the_constants_of_a_device_are_of_this_world(device: Device) -> None:
    """Bounds between what microcontrollers and data centres have; a prefix that is off by 1000 is outside."""
    found = figures(device)
    bounds = {
        "compute": (1e9, 2e15), "bandwidth": (1e9, 1e13), "memory": (1e8, 1e12), "power": (0.5, 1000),
        "energy_per_mac": (0.1e-12, 10e-12), "energy_per_byte": (10e-12, 500e-12),
    }  # fmt: skip
    for kind, figure in found.items():
        low, high = bounds[kind]
        assert low <= figure.value <= high, kind
        assert re.search(r"[A-Z][\w-]+", figure.source), f"{kind}: a source names a document or its authors"
    assert ("energy_per_mac" in found) == ("energy_per_byte" in found)
    for kind in ("energy_per_mac", "energy_per_byte"):
        assert kind not in found or re.search(r"\b(19|20)\d\d\b", found[kind].source), "a paper has a year"
    if "compute" in found and "bandwidth" in found:
        assert 1 <= found["compute"].value / found["bandwidth"].value <= 500, "FLOPs for each byte at the ridge"
    if "compute" in found and "energy_per_mac" in found:
        assert found["compute"].value / 2 * found["energy_per_mac"].value < 100, "watts of arithmetic alone"
    if "energy_per_mac" in found:  # Horowitz, ISSCC 2014: a fetch from DRAM costs tens to hundreds of multiplications
        assert 10 <= found["energy_per_byte"].value / found["energy_per_mac"].value <= 1000


@pytest.mark.parametrize("name", [each for each in names() if get(each).runtime == "vitis-ai"])
def test_a_soft_core_computes_what_its_size_says(name: str) -> None:
    """Two operations for each of pixels x input channels x output channels in each cycle (PG338)."""
    device = get(name)
    assert isinstance(device.latency, SoftCoreLatency)
    assert device.compute is not None
    parallel = prod(CORES[device.latency.core])
    assert device.latency.core == f"B{2 * parallel}"
    assert device.compute.value == pytest.approx(2 * parallel * device.latency.clock, rel=1e-6)
    assert SoftCore(device.latency.core, device.latency.clock).peak_macs == pytest.approx(device.compute.value / 2)


def test_a_users_own_file(tmp_path: Path) -> None:
    device = get(write(tmp_path, FULL))
    assert (device.name, device.settings.threads, device.settings.batch) == ("my-board", 4, 2)
    assert device.compute is not None
    assert device.compute.value == 38.4e9
    assert device.compute.source == "data sheet, page 3"
    assert device.bandwidth is not None
    assert device.bandwidth.value == 12.8e9
    assert device.memory is not None
    assert device.memory.value == 2 * 2**30
    assert device.power is not None
    assert device.power.value == 7.5


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("kind: cpu", "kind: toaster", "kind"),
        ("name: my-board", "name: ../escape", "name"),
        ("name: my-board", "name: 7", "name"),
        ("title: My board", "", "title"),
        ("title: My board", "titel: My board", "titel"),
        ("title: My board", "title: My board\ncolour: red", "colour"),
        ("runtime: onnxruntime", "runtime: abacus", "runtime"),
        ("threads: 4", "threads: 0", "settings.threads"),
        ("threads: 4", 'threads: "4"', "settings.threads"),
        ("threads: 4", "threads: true", "settings.threads"),
        ("batch: 2", "batches: 2", "settings.batches"),
        ("38.4 GFLOP/s", "38.4 GFLOPS", "compute.value"),
        ("38.4 GFLOP/s", "-1 GFLOP/s", "compute.value"),
        ("38.4 GFLOP/s", "0 GFLOP/s", "compute.value"),
        ("38.4 GFLOP/s", "nan FLOP/s", "compute.value"),
        ("12.8 GB/s", "12.8 Gb/s", "bandwidth.value"),
        ('"12.8 GB/s"', "12800000000", "bandwidth.value"),
        ("value: 2GiB, source: data sheet", "value: 2GiB", "memory.source"),
        ("12.8 GB/s", "12.8 PB/s", "bandwidth.value"),
        ("38.4 GFLOP/s", "38.4 FLOP/s", "compute.value"),
        ("7.5 W", "7.5 kW", "power.value"),
        ("source: wall meter", 'source: ""', "power.source"),
        ('{value: "7.5 W", source: wall meter}', "7.5", "power"),
    ],
)
def test_a_mistake_names_file_and_key(old: str, new: str, key: str, tmp_path: Path) -> None:
    assert old in FULL
    path = write(tmp_path, FULL.replace(old, new))
    with pytest.raises(DeviceError) as caught:
        get(path)
    assert caught.value.message.startswith(f"{path}: {key}: ")
    assert "\n" not in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"- a\n- b\n",
        b"just text",
        b"name: [unclosed",
        b"\xff\xfe\x00binary\x00",
        b"!!python/object/apply:os.system ['touch pwned']",
        b"[" * 20_000,
        b"x: " + b"y" * 100_000,
        b"2026-99-99: 2026-99-99",
    ],
)
def test_what_is_no_description_is_one_clear_line(content: bytes, tmp_path: Path) -> None:
    path = write(tmp_path, content)
    with pytest.raises(DeviceError) as caught:
        get(path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_unknown_names_and_files(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match='"toaster"') as caught:
        get("toaster")
    assert "cpu" in caught.value.hint
    with pytest.raises(DeviceError, match="No such file"):
        get(tmp_path / "none.yaml")
    with pytest.raises(DeviceError, match="cannot read"):
        get(f"{tmp_path}/")


def test_a_file_whose_name_says_another_device_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The targets are listed by their files' names: the one in the file could not be asked for."""
    monkeypatch.setenv("SECATEUR_DEVICES", str(tmp_path))
    write(tmp_path, FULL)
    with pytest.raises(DeviceError, match=r"board\.yaml describes my-board") as caught:
        get("board")
    assert caught.value.hint == "write name: board, or rename the file"


def test_a_device_is_like_another_but_for_what_it_says(tmp_path: Path) -> None:
    text = "{name: fpga:mine, like: fpga:zcu104, title: Mine, latency: {model: soft_core, core: B512, clock: 200 MHz}}"
    board, base = get(write(tmp_path, text)), get("fpga:zcu104")
    assert (board.kind, board.runtime, board.energy_per_byte) == (base.kind, base.runtime, base.energy_per_byte)
    assert (board.name, board.title, board.description) == ("fpga:mine", "Mine", "")
    assert isinstance(board.latency, SoftCoreLatency)
    assert board.latency.core == "B512"


@pytest.mark.parametrize("like", ["fpga:no-such", "fpga", "3", "[cpu]", "''"])
def test_like_names_a_device_that_describes_itself(like: str, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"like: .* is no device that describes itself"):
        get(write(tmp_path, f"{{name: fpga:mine, title: Mine, like: {like}}}"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{name: cpu:x, kind: cpu, title: X, runtime: vitis-ai}", "kind: cpu is this machine"),
        ("{name: mobile:x, kind: mobile, title: X, runtime: onnxruntime, here: true}", "target of kind cpu"),
        (
            "{name: fpga:x, kind: fpga, title: X, runtime: vitis-ai,"
            " latency: {model: soft_core, core: B9, clock: 1 GHz}}",
            "core",
        ),
        ("{name: gpu:x, kind: gpu, title: X, runtime: tensorrt, latency: {model: roofline, use: 0.5, operator: 4 us}}",
         "a roofline needs compute and bandwidth"),
        ("{name: gpu:x, kind: gpu, kind: fpga, title: X, runtime: tensorrt}", "the key kind stands twice"),
    ],
)  # fmt: skip
def test_a_device_that_makes_no_sense_is_refused_when_it_is_read(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=words):
        get(write(tmp_path, text))


def test_the_cores_and_boards_that_a_file_may_name_are_those_that_are_known() -> None:
    assert set(SoftCoreLatency.model_fields["core"].annotation.__args__) == set(CORES)
    assert set(StreamedLatency.model_fields["board"].annotation.__args__) == set(BOARDS)
