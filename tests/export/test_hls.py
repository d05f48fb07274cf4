"""Designs for FPGAs: fixed-point numbers by hand, estimates by hand, reasons for refusal, and a design that is compiled
and compared bit by bit."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from export_models import OddChannels, TinyViT, TwoInputs, make_workload
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from toy_metrics import AbsoluteError

from secateur.core.errors import ExportError
from secateur.core.task import Task, Workload
from secateur.export.hls_fixed import Fixed, emulate, integer_bits, quantise, smallest_width
from secateur.export.hls_graph import prepare
from secateur.export.hls_resources import BOARDS, USABLE, Board, Layer, Resources, dsp_each, estimate, fit, layers_of


class TwoHeads(nn.Module):
    """A residual CNN of five and six channels: a map of three channels, and four numbers from its mean."""

    tasks = ("map", "numbers")

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5))
        self.block = nn.Sequential(nn.Conv2d(5, 5, 3, padding=1), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(5, 6, 1), nn.MaxPool2d(2), nn.Dropout(0.5))
        self.map, self.numbers = nn.Conv2d(6, 3, 1), nn.Linear(6, 4)
        self.auxiliary = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.stem(x))
        x = self.down(self.block(x) + x)
        mean = nn.functional.relu(x).mean((2, 3))
        return {"map": self.map(x), "numbers": self.numbers(mean), "auxiliary": self.auxiliary(x)}


class Size:
    """Mean magnitude of the predictions."""

    def __init__(self) -> None:
        self.sum, self.count = 0.0, 0

    def update(self, prediction: Tensor, target: Tensor) -> None:
        self.sum += float(prediction.abs().sum())
        self.count += prediction.numel()

    def compute(self) -> float:
        return self.sum / self.count


def two_heads() -> Workload:
    torch.manual_seed(0)
    model = TwoHeads().eval()
    nn.init.uniform_(model.stem[1].running_var, 0.5, 2)
    data = [(torch.randn(4, 3, 8, 8), dict.fromkeys(model.tasks, torch.zeros(()))) for _ in range(2)]
    tasks = tuple(Task(name, nn.functional.l1_loss, Size(), "higher") for name in model.tasks)
    return Workload("two", model, torch.randn(1, 3, 8, 8), tasks, data, data, data)


@pytest.fixture(scope="module")
def workload() -> Workload:
    return two_heads()


def test_preparing_keeps_what_is_computed(workload: Workload) -> None:
    prepared = prepare(workload.model, workload)
    image = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        wanted = workload.model(image)
        for name, value in zip(prepared.outputs, prepared.graph(image), strict=True):
            torch.testing.assert_close(value, wanted[name], atol=1e-5, rtol=1e-5)
    kinds = [type(prepared.module(node)).__name__ for node in prepared.nodes if node.op == "call_module"]
    assert not {"BatchNorm2d", "Dropout"} & set(kinds)
    assert kinds.count("Conv2d") == 4, "the head that is no task is gone"
    assert {task: node.meta["shape"] for task, node in prepared.outputs.items()} == {"map": (3, 4, 4), "numbers": (4,)}
    assert isinstance(workload.model.stem[1], nn.BatchNorm2d), "the model itself stays"


class Depthwise(TwoHeads):
    """Several reasons at once."""

    def __init__(self) -> None:
        super().__init__()
        self.block[0] = nn.Conv2d(5, 5, 3, padding=1, groups=5)
        self.down[1] = nn.MaxPool2d(3, 2, 1)


class Shared(TwoHeads):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = self.map(self.down(self.stem(x)))
        return {"map": first, "numbers": first * 2}


class Branching(TwoHeads):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return super().forward(x if x.sum() > 0 else -x)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Depthwise, ["block.0: Conv2d with 5 groups", "down.1: MaxPool2d"]),
        (Shared, ["function mul", 'task "map" is used on the way']),
        (Branching, ["cannot trace"]),
        (TinyViT, ["LayerNorm", "MultiheadAttention", "GELU"]),
        (OddChannels, ["interpolate"]),
        (TwoInputs, ["one image"]),
    ],
)
def test_refused_before_any_conversion_with_every_reason(kind: type[nn.Module], said: list[str]) -> None:
    model = kind().eval()
    if isinstance(model, TwoHeads):
        tasks = tuple(Task(name, nn.functional.l1_loss, AbsoluteError(), "lower") for name in model.tasks)
        workload = Workload("refused", model, torch.randn(1, 3, 8, 8), tasks, [], [], [])
    else:
        workload = make_workload(model)
    with pytest.raises(ExportError) as caught:
        prepare(model, workload)
    assert all(words in caught.value.message for words in said), caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(("largest", "bits"), [(0.0, 1), (0.2, -1), (0.25, 0), (0.9, 1), (1.0, 2), (3.9, 3), (4.0, 4)])
def test_integer_bits_by_hand(largest: float, bits: int) -> None:
    """±0.9 fits into [-1, 1) = 1 bit; 1.0 does not."""
    assert integer_bits(largest) == bits


@given(st.integers(-(10**7), 10**7).map(lambda count: count / 2**16), st.integers(2, 20), st.integers(-3, 9))
def test_quantising_cuts_off_below_and_wraps_above(value: float, width: int, integer: int) -> None:
    (held,) = quantise(torch.tensor([value], dtype=torch.float64), width, integer)
    step, half = 2.0 ** (integer - width), 2.0 ** (integer - 1)
    assert -half <= held < half
    assert float(held / step).is_integer()
    if -half <= value < half:
        assert 0 <= value - held < step, "always downwards"
    assert abs(((value - float(held)) / (2 * half)) - round((value - float(held)) / (2 * half))) <= step / half


def test_values_that_are_held_exactly_stay() -> None:
    values = torch.tensor([-2.0, -0.75, 0.0, 0.25, 1.75])
    assert torch.equal(quantise(values, 4, 2), values)
    assert quantise(torch.tensor([2.0, -2.25]), 4, 2).tolist() == [-2.0, 1.75]


def test_a_wide_design_is_the_model_and_a_narrow_one_is_not(workload: Workload) -> None:
    prepared = prepare(workload.model, workload)
    images = [inputs for inputs, _ in workload.calibration]
    fixed = Fixed.measure(prepared, images)
    with torch.no_grad():
        wanted = workload.model(images[0])
    errors = [
        float((emulate(prepared, fixed, width)(images[0])["map"] - wanted["map"]).abs().max()) for width in (6, 12, 24)
    ]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 1e-4


def test_the_width_is_the_smallest_that_keeps_the_metrics(workload: Workload) -> None:
    prepared = prepare(workload.model, workload)
    fixed = Fixed.measure(prepared, (inputs for inputs, _ in workload.calibration))
    loose, tight = (smallest_width(prepared, fixed, workload, tolerance=share) for share in (0.2, 0.001))
    assert 4 <= loose < tight <= 20
    with pytest.raises(ExportError, match="not enough"):
        smallest_width(prepared, fixed, workload, tolerance=0.0)


CONV = Layer("conv", inputs=27, outputs=8, pixels=64, columns=10, rows=2, channels=3)
DENSE = Layer("dense", inputs=12, outputs=4, pixels=1)


def test_reuse_factors_are_those_that_hls4ml_takes() -> None:
    assert DENSE.reuse_factors() == [1, 2, 3, 4, 6, 12, 24, 48]
    hls4ml = pytest.importorskip("hls4ml", reason="hls4ml is not installed (the extra [fpga])")
    backend = hls4ml.backends.get_backend("Vitis")
    for layer in (CONV, DENSE):
        assert layer.reuse_factors() == backend.get_valid_reuse_factors(layer.inputs, layer.outputs)


def test_multipliers_and_their_dsps_by_hand() -> None:
    assert [dsp_each(width) for width in (8, 9, 10, 18, 19, 27, 28)] == [0, 0, 1, 1, 2, 2, 4]
    for reuse, multipliers in ((1, 216), (27, 8), (216, 1)):
        assert estimate([CONV], {"conv": reuse}, 16).dsp == multipliers
    assert estimate([CONV], {"conv": 216}, 16).bram18 == 1
    assert estimate([CONV, DENSE], {"conv": 27, "dense": 48}, 16).dsp == 9
    assert estimate([CONV], {"conv": 1}, 8).dsp == 0, "narrow products are built from look-up tables"


def test_the_fastest_that_fits_is_found() -> None:
    """A board of 20 DSPs, 16 usable: the dense layer has time for one multiplier, the convolution gets 8."""
    board = Board("toy", "part", Resources(20, 100, 10**6, 10**6), "by hand")
    design = fit([CONV, DENSE], 16, board)
    assert design.reuse == {"conv": 27, "dense": 48}
    assert design.resources.dsp == 9 <= USABLE * 20
    assert design.cycles == 64 * 27
    assert design.interval_ms == pytest.approx(64 * 27 * 5e-6)
    roomy = fit([CONV, DENSE], 16, Board("large", "part", Resources(10**4, 10**4, 10**6, 10**6), "by hand"))
    assert roomy.cycles == 64


def test_what_does_not_fit_says_of_what() -> None:
    large = Layer("dense", inputs=100_000, outputs=1000, pixels=1)
    with pytest.raises(ExportError, match="of 280 bram18") as caught:
        fit([large], 16, BOARDS["pynq-z2"])
    assert "zcu102" in caught.value.hint


def test_layers_by_hand(workload: Workload) -> None:
    found = {layer.inputs: (layer.outputs, layer.pixels) for layer in layers_of(prepare(workload.model, workload))}
    assert found == {27: (5, 64), 45: (5, 64), 5: (6, 64), 6: (4, 1)} | {6: (4, 1)}


@pytest.fixture(scope="module")
def design(workload: Workload, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hls4ml", reason="hls4ml is not installed (the extra [fpga])")
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    from secateur.export.hls import to_hls

    path = tmp_path_factory.mktemp("hls") / "model.hls.zip"
    to_hls(workload.model, workload, path, board="pynq-z2", width=12)
    return path


@pytest.mark.slow
def test_the_compiled_design_computes_the_emulation_bit_by_bit(design: Path, workload: Workload) -> None:
    from secateur.export.hls_session import HlsModel
    from secateur.export.runtime import predictor

    prepared = prepare(workload.model, workload)
    fixed = Fixed.measure(prepared, (inputs for inputs, _ in workload.calibration))
    images = workload.test[0][0]  # type: ignore[index]
    wanted = emulate(prepared, fixed, 12)(images)
    with HlsModel(design) as runtime:
        assert runtime.design.width == 12
        assert {each.task for each in runtime.design.outputs} == set(workload.task_names)
        got = predictor(runtime)(images)
        with pytest.raises(ExportError, match="one input of shape"):
            runtime.run([torch.zeros(1, 3, 4, 4).numpy()])
    for task in workload.task_names:
        assert torch.equal(got[task], wanted[task])


@pytest.mark.slow
def test_the_archive_is_the_same_each_time_and_is_checked(design: Path, workload: Workload, tmp_path: Path) -> None:
    from secateur.export.hls import to_hls
    from secateur.export.hls_session import HlsModel

    names = zipfile.ZipFile(design).namelist()
    assert {"firmware/model.cpp", "build_prj.tcl", "secateur.json"} <= set(names)
    again = tmp_path / "again.zip"
    to_hls(workload.model, workload, again, board="pynq-z2", width=12)
    with zipfile.ZipFile(again) as first, zipfile.ZipFile(design) as second:
        assert first.namelist() == second.namelist()
        assert first.read("firmware/defines.h") == second.read("firmware/defines.h")
    cut = tmp_path / "cut.zip"
    cut.write_bytes(design.read_bytes()[: design.stat().st_size // 2])
    with pytest.raises(ExportError, match="no design"):
        HlsModel(cut)
    evil = tmp_path / "evil.zip"
    with zipfile.ZipFile(evil, "w") as archive:
        archive.writestr("../outside", "x")
    with pytest.raises(ExportError, match="no plain file"):
        HlsModel(evil)
    assert not (tmp_path.parent / "outside").exists()
