"""What a budget on latency or energy is judged by: the calibration first, the device's own model next, else advice."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secateur.core.errors import DeviceError
from secateur.profiles.latency.kernels import KernelModel, Measured
from secateur.profiles.latency.operators import Operator
from secateur.profiles.latency.soft_core import SoftCore
from secateur.profiles.latency.table import LatencyModel, LatencyTable
from secateur.targets import predict
from secateur.targets.calibration.sampling import draw
from secateur.targets.device import Device, get
from secateur.targets.hardware import hardware_of
from secateur.targets.predict import Roofline, energy_mj, latency_model


def drawn(count: int, seed: int = 0) -> list[Operator]:
    random = np.random.default_rng(seed)
    return [draw(random) for _ in range(count)]


def fitted() -> KernelModel:
    rows = [
        Measured(each, ms := 0.01 + each.macs / 1e8 + each.elements_out / 1e7, ms + each.weights / 1e6)
        for each in drawn(60)
    ]
    return KernelModel.fit(rows).with_models([(drawn(9, seed), [1.0 + seed]) for seed in range(1, 7)])


MODELS: dict[str, LatencyModel] = {
    "calibrated": fitted(),
    "published": latency_model(get("mobile:raspberry-pi-5")),
    "soft core": SoftCore("B4096", 281e6, "ZCU102"),
    "roofline": Roofline(1e12, 1e11, 0.5, 4e-6),
}


def with_settings(device: Device, **settings: int) -> Device:
    return device.model_copy(update={"settings": device.settings.model_copy(update=settings)})


class Counting:
    """A latency model that notes what it is asked."""

    def __init__(self, model: LatencyModel) -> None:
        self.model, self.asked = model, list[Operator]()
        self.predict, self.whole = model.predict, model.whole

    def parts(self, operators: list[Operator]) -> Iterable[Any]:
        self.asked += operators
        return self.model.parts(operators)


@pytest.mark.parametrize("name", MODELS)
def test_a_table_says_what_its_model_says_and_asks_for_an_operator_once(name: str) -> None:
    model, counting = MODELS[name], Counting(MODELS[name])
    table, operators = LatencyTable(counting), drawn(12, 5)  # type: ignore[arg-type]
    table.learn([operators[:8], operators[4:]])
    for some in (operators, operators[3:], operators[:2] * 3):
        assert table.ms(some) == pytest.approx(model.predict(some).ms, rel=1e-9)
    assert len(counting.asked) == len(set(operators))


def test_the_calibration_goes_above_the_devices_own_model(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def calibrated(name: str, threads: int) -> KernelModel:
        asked.append((name, threads))
        return MODELS["calibrated"]  # type: ignore[return-value]

    monkeypatch.setattr(predict, "calibrated", calibrated)
    assert "secateur calibrate" in hardware_of(get("cpu"), ["latency"]).basis
    assert "secateur calibrate" in hardware_of(get("mobile"), ["latency"]).basis
    assert asked == [("cpu", 1), ("mobile", 1)]
    assert "published" in hardware_of(get("mobile:raspberry-pi-5"), ["latency"]).basis  # not this machine
    assert "data sheet" in hardware_of(get("gpu:a100"), ["latency"]).basis
    assert len(asked) == 2


def test_without_any_model_the_way_to_one_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path))
    predict.calibrated.cache_clear()
    with pytest.raises(DeviceError, match="this machine is not calibrated") as error:
        hardware_of(get("cpu"), ["latency"])
    assert "secateur calibrate cpu;" in error.value.hint
    with pytest.raises(DeviceError) as error:
        hardware_of(with_settings(get("cpu"), threads=2), ["latency"])
    assert "secateur calibrate cpu --threads 2" in error.value.hint
    with pytest.raises(DeviceError, match="cpu:tvm has no latency model"):
        hardware_of(get("cpu:tvm"), ["latency"])
    with pytest.raises(DeviceError, match="routing of a whole workload") as error:
        hardware_of(get("fpga:edge-moe"), ["latency"])
    assert "or limit flops" in error.value.hint
    with pytest.raises(DeviceError, match="batches of 4"):
        hardware_of(with_settings(get("mobile:raspberry-pi-5"), batch=4), ["latency"])
    predict.calibrated.cache_clear()


def test_energy_is_what_the_devices_file_tells() -> None:
    device, operators = get("mobile:raspberry-pi-5"), drawn(5)
    assert hardware_of(device, ["energy"]).figure("energy", operators) == energy_mj(device, operators)
    with pytest.raises(DeviceError, match="cpu tells no energy"):
        hardware_of(get("cpu"), ["energy"])
