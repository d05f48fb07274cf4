"""Calibration: what is measured is kept, a stopped run goes on, and what a kernel does is learned with its steps."""

from __future__ import annotations

import importlib.util
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from secateur.core.errors import DeviceError, OutputError
from secateur.profiles.latency.kernels import KernelModel, Measured, with_channels
from secateur.profiles.latency.operators import Operator
from secateur.profiles.latency.read import read_onnx, read_onnx_bytes
from secateur.targets.calibration import run
from secateur.targets.calibration.meters import METERS, NcnnMeter, OnnxRuntimeMeter
from secateur.targets.calibration.networks import network
from secateur.targets.calibration.sampling import LARGEST_MACS, convolution, draw, near
from secateur.targets.calibration.sketch import Sketch, operator_sketch
from secateur.verbs.benchmark import benchmark

needs_ncnn = pytest.mark.skipif(not all(map(importlib.util.find_spec, ("ncnn", "pnnx"))), reason="needs ncnn and pnnx")


def truth(operator: Operator) -> float:
    """A machine whose convolutions fill vectors of 16 output channels."""
    ins, outs = operator.channels
    if operator.kind != "conv" or operator.depthwise:
        return 1e-3 + 2e-9 * (operator.elements_in + operator.elements_out)
    return 2e-3 + operator.pixels * ins * -(-outs // 16) * 16 * operator.taps / 1e8


def fetched(operator: Operator) -> float:
    """Its weights come from memory at 4 GB/s, a millisecond for each million."""
    return operator.weights / 1e6


class FakeMeter:
    """Times that are computed; stops when it is told to."""

    version = "fake 1"
    left = 10**9

    def operator(self, operator: Operator) -> tuple[float, float]:
        if FakeMeter.left <= 0:
            raise KeyboardInterrupt
        FakeMeter.left -= 1
        return truth(operator), truth(operator) + fetched(operator)

    def model(self, sketch: Sketch) -> float:
        return 0.05 + 1.2 * sum(map(truth, read_onnx_bytes(sketch.onnx())))


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path))
    monkeypatch.setitem(METERS, "cpu", lambda threads: FakeMeter())
    monkeypatch.setattr(run, "FIRST", 40)
    monkeypatch.setattr(run, "ROUND", 20)
    monkeypatch.setattr(run, "WHOLE", 9)
    FakeMeter.left = 10**9
    run.calibrated.cache_clear()
    yield
    run.calibrated.cache_clear()


def test_a_stopped_run_goes_on_and_a_cut_line_is_dropped() -> None:
    FakeMeter.left = 25
    with pytest.raises(KeyboardInterrupt):
        run.calibrate("cpu")
    path = run.read("cpu").path
    assert len(run.read("cpu").operators) == 25
    path.write_text(path.read_text()[:-7])
    assert len(run.read("cpu").operators) == 24
    FakeMeter.left = 16
    with pytest.raises(KeyboardInterrupt):
        run.calibrate("cpu")
    assert len(run.read("cpu").operators) == 24 + 16, "only the line that was cut is lost"
    assert run.read("cpu").operators[0][0].kind


def test_a_stopped_run_ends_with_the_operators_of_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "GOOD_ENOUGH", float("inf"))  # those drawn later depend on times
    whole = [row.operator for row in run.calibrate("cpu").operators]
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "stopped"))
    for FakeMeter.left in (1, 11, 20):
        with pytest.raises(KeyboardInterrupt):
            run.calibrate("cpu")
    FakeMeter.left = 10**9
    assert [row.operator for row in run.calibrate("cpu").operators] == whole
    assert len(set(whole)) > 0.9 * run.FIRST


def test_one_process_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the same time both would measure the same operators, and each other."""
    monkeypatch.setattr(FakeMeter, "operator", lambda *_: run.calibrate("cpu"))
    with pytest.raises(DeviceError, match="another process calibrates"):
        run.calibrate("cpu")
    assert run.read("cpu").operators == []


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match=r"cannot write .*file/calibration"):
        run.calibrate("cpu")


def test_networks_are_measured_at_different_times_and_each_as_often() -> None:
    run.calibrate("cpu")
    found = run.read("cpu")
    assert [len(times) for _, times in found.models.values()] == [run.PASSES] * run.WHOLE
    lines = found.path.read_text().splitlines()
    order = [entry["network"] for entry in map(json.loads, lines) if "network" in entry]
    assert all(one != other for one, other in itertools.pairwise(order)), "never twice in a row"
    found.path.write_text("\n".join(lines[:-4]) + "\n")  # the run was stopped in its last pass
    assert sum(len(times) for _, times in run.read("cpu").models.values()) == run.PASSES * run.WHOLE - 4
    run.calibrate("cpu")
    again = run.read("cpu")
    assert [len(times) for _, times in again.models.values()] == [run.PASSES] * run.WHOLE, "a stopped run goes on"
    assert again.models[0] == found.models[0]


def test_measurements_are_apart_by_runtime_and_threads() -> None:
    assert run.store("cpu", "a 1, threads 1") != run.store("cpu", "a 2, threads 1")
    with pytest.raises(DeviceError, match="cannot be measured"):
        run.calibrate("fpga:zcu102")
    assert run.calibrated("cpu") is None
    assert run.calibrated("mobile:raspberry-pi-5") is None


def rows(count: int) -> list[Measured]:
    random = np.random.default_rng(3)
    found = [draw(random) for _ in range(count)]
    found += [convolution(64, outs, 14, 3, 1) for outs in range(16, 97)]
    return [Measured(operator, truth(operator), truth(operator) + fetched(operator)) for operator in found]


def test_steps_are_where_a_vector_ends() -> None:
    model = KernelModel.fit(rows(150))
    steps = model.steps(convolution(64, 96, 14, 3, 1))
    assert steps[-1] == 96
    assert {32, 48, 64, 80} <= set(steps)
    between = [count for count in steps if 20 <= count <= 96]
    assert sum(count % 16 == 0 for count in between) >= 0.7 * len(between)


def test_whole_networks_teach_what_operators_do_not_tell() -> None:
    random = np.random.default_rng(1)
    model = KernelModel.fit(rows(250))
    networks = [read_onnx_bytes(network(random).onnx()) for _ in range(12)]
    taught = {id(each): 0.005 + 1.2 * sum(model.layers(each)) for each in networks}
    whole = model.with_models([(each, [taught[id(each)]]) for each in networks])
    found = whole.predict(networks[0])
    before = [abs(model.predict(each).ms / taught[id(each)] - 1) for each in networks]
    after = [abs(whole.predict(each).ms / taught[id(each)] - 1) for each in networks]
    assert np.median(after) < 0.3 * np.median(before)
    assert found.low < found.ms < found.high
    assert sum(found.shares.values()) <= 1.0 + 1e-9


def test_weights_that_outgrow_the_caches_are_paid_for() -> None:
    """Whole models on a machine whose caches hold a million weights: the rest is fetched in every call."""
    random = np.random.default_rng(1)
    model = KernelModel.fit(rows(250))
    networks = [read_onnx_bytes(network(random).onnx()) for _ in range(40)]

    def taught(operators: list[Operator], *, outgrown: bool) -> float:
        beyond = max(sum(map(fetched, operators)) - 1.0, 0.0)
        return sum(model.layers(operators)) + outgrown * beyond

    large = [convolution(256, 256, 8, 3, 1)] * 12
    found = model.with_models([(each, [taught(each, outgrown=True)]) for each in networks])
    assert found.predict(large).ms == pytest.approx(taught(large, outgrown=True), rel=0.1)
    assert found.predict(large).ms > 1.5 * taught(large, outgrown=False)
    assert sum(found.layers(large)) == pytest.approx(found.predict(large).ms - found.start_ms)
    fits = model.with_models([(each, [taught(each, outgrown=False)]) for each in networks])
    assert fits.predict(large).ms == pytest.approx(taught(large, outgrown=False), rel=0.1)


def test_what_is_drawn_can_be_measured_and_neighbours_stay_small() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        operator = draw(random)
        assert operator.macs <= LARGEST_MACS
        assert near(operator, random).kind == operator.kind
    halved = with_channels(convolution(64, 64, 8, 3, 1), "in", 32)
    assert halved.macs == convolution(32, 64, 8, 3, 1).macs
    assert with_channels(convolution(8, 8, 4, 3, 1, depthwise=True), "out", 5).depthwise


def test_a_sketch_is_what_it_says() -> None:
    random = np.random.default_rng(5)
    for _ in range(6):
        sketch = network(random)
        session = onnxruntime.InferenceSession(sketch.onnx(), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"x": np.zeros((1, *sketch.input.shape), np.float32)})
        assert found.shape == (1, *sketch.output.shape)
        assert read_onnx_bytes(sketch.onnx())[0].inputs[0] == sketch.input.shape


def test_operators_are_timed_in_onnx_runtime() -> None:
    meter = OnnxRuntimeMeter()
    shape = (16, 8, 8)
    for operator in (
        convolution(16, 24, 8, 3, 1), convolution(17, 17, 8, 3, 1, depthwise=True),
        Operator("elementwise", (shape, shape), shape), Operator("concat", (shape, shape), (32, 8, 8)),
        Operator("linear", ((16,),), (10,), weights=160), Operator("activation", (shape,), shape, function="swish"),
    ):  # fmt: skip
        warm, cold = meter.operator(operator)
        assert 0 < warm <= cold
    assert meter.operator(convolution(64, 64, 32, 3, 1)) > meter.operator(convolution(8, 8, 8, 1, 1))


@needs_ncnn
def test_a_sketch_computes_the_same_shapes_in_ncnn() -> None:
    meter, random = NcnnMeter(), np.random.default_rng(2)
    for _ in range(4):
        assert meter.model(network(random)) > 0
    for operator in (convolution(16, 24, 8, 3, 1), Operator("elementwise", ((8, 4, 4),) * 2, (8, 4, 4))):
        warm, cold = meter.operator(operator)
        assert 0 < warm <= cold
    assert "Split x_split" in operator_sketch(Operator("elementwise", ((8, 4, 4),) * 2, (8, 4, 4))).ncnn()


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(network(np.random.default_rng(8)).onnx())
    return path


@pytest.mark.parametrize(("target", "predict"), [("cpu", True), pytest.param("mobile", False, marks=needs_ncnn)])
def test_benchmark_predicts_this_machine_from_its_calibration(
    model_file: Path, target: str, predict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is asked to, and where the runtime takes no ONNX file."""
    monkeypatch.setitem(METERS, target, lambda threads: FakeMeter())
    run.calibrate(target)
    (profile,) = benchmark(model_file, [target], predict=predict).profiles
    model = run.calibrated(target)
    assert model is not None
    expected = model.predict(read_onnx(model_file))
    assert (profile.source, profile.basis) == ("predicted", "calibrated")
    assert profile.latency is not None
    assert profile.latency.median == expected.ms
    assert expected.low < profile.latency.p10 < expected.ms < profile.latency.p90 < expected.high
    assert profile.error_pct == round(expected.error_pct, 1)


def test_a_machine_that_is_not_calibrated_says_so_and_others_complete(model_file: Path) -> None:
    cpu, board = benchmark(model_file, ["cpu", "mobile:raspberry-pi-4"], predict=True).profiles
    assert cpu.source == "unavailable"
    assert "secateur calibrate cpu" in str(cpu.how)
    assert (board.source, board.basis) == ("predicted", "published")
    with pytest.raises(DeviceError, match="not calibrated"):
        benchmark(model_file, ["cpu"], predict=True)
