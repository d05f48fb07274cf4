"""Operators of a file, and the physical terms of each: numbers derived by hand from shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from secateur.core.errors import ExportError
from secateur.profiles.latency.operators import Operator, total_macs
from secateur.profiles.latency.read import onnx_costs, read_onnx
from secateur.profiles.latency.soft_core import CORES, cycles
from secateur.profiles.latency.tables import latencies, networks
from secateur.profiles.latency.terms import CPU, cpu_terms


def save(path: Path, nodes: list[onnx.NodeProto], weights: dict[str, tuple[int, ...]], shape: list[object]) -> Path:
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.zeros(dims, np.float32), name) for name, dims in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


def conv(weight: str, source: str, target: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, weight], [target], **attributes)


def test_activations_and_normalisation_are_computed_along(tmp_path: Path) -> None:
    nodes = [
        conv("w", "x", "a", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("BatchNormalization", ["a", "s", "s", "s", "s"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Sigmoid", ["c"], ["d"]),
        helper.make_node("Mul", ["c", "d"], ["y"]),
    ]
    path = save(tmp_path / "m.onnx", nodes, {"w": (8, 3, 3, 3), "s": (8,)}, ["batch", 3, 32, 32])
    found = read_onnx(path)
    assert [each.kind for each in found] == ["conv", "activation"]
    assert found[0].inputs == ((3, 32, 32),)
    assert found[0].output == (8, 16, 16)
    assert total_macs(found) == 16 * 16 * 8 * 27


def test_an_activation_that_others_also_need_the_input_of_stays(tmp_path: Path) -> None:
    nodes = [
        conv("w", "x", "a", kernel_shape=[1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    path = save(tmp_path / "m.onnx", nodes, {"w": (8, 3, 1, 1)}, [1, 3, 4, 4])
    assert [each.kind for each in read_onnx(path)] == ["conv", "activation", "elementwise"]


def test_what_passes_through_a_cast_or_an_identity_is_computed_all_the_same(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["y"]),
        helper.make_node("Dropout", ["y"], ["z"]),
        conv("w", "z", "out"),
    ]
    (found,) = read_onnx(save(tmp_path / "m.onnx", nodes, {"w": (8, 4, 3, 3)}, ["n", 4, 6, 6]))
    assert (found.kind, found.macs) == ("conv", 8 * 4 * 9 * 16)


@pytest.mark.parametrize("batch", ["n", 3])
def test_rows_that_a_sample_has_in_the_batch_are_counted(batch: object, tmp_path: Path) -> None:
    """[N, 5, 4] flattened to [5 N, 4], as windows and routed tokens are."""
    nodes = [helper.make_node("Reshape", ["x", "flat"], ["y"]), helper.make_node("Gemm", ["y", "w"], ["out"])]
    path = save(tmp_path / "m.onnx", nodes, {"w": (4, 7)}, [batch, 5, 4])
    model = onnx.load(path)
    model.graph.initializer.append(helper.make_tensor("flat", TensorProto.INT64, [2], [-1, 4]))
    onnx.save(model, path)
    (found,) = (each for each in read_onnx(path) if each.kind == "linear")
    assert (found.macs, found.inputs, found.output) == (4 * 7 * 5, ((5, 4),), (5, 7))


def test_memory_is_what_exists_at_one_time(tmp_path: Path) -> None:
    nodes = [
        conv("w", "x", "a", kernel_shape=[1, 1]),  # x 48, a 128 elements
        helper.make_node("Sigmoid", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["flat"]),  # the same memory
        helper.make_node("Flatten", ["a"], ["kept"]),
        helper.make_node("Add", ["flat", "kept"], ["y"]),
    ]
    path = save(tmp_path / "m.onnx", nodes, {"w": (8, 3, 1, 1)}, ["batch", 3, 4, 4])
    assert onnx_costs(path).peak_memory_bytes == 4 * (24 + 2 * 128)  # a and b; y is written over one of them, x is gone


def test_an_operand_that_nothing_else_needs_is_written_over(tmp_path: Path) -> None:
    """x 48, a 128 elements: sigmoid and sum take no memory of their own, and y is the only output."""
    nodes = [
        conv("w", "x", "a", kernel_shape=[1, 1]),
        helper.make_node("Sigmoid", ["a"], ["b"]),
        conv("v", "b", "c", kernel_shape=[1, 1]),
        helper.make_node("Add", ["b", "c"], ["y"]),
    ]
    weights = {"w": (8, 3, 1, 1), "v": (8, 8, 1, 1)}
    path = save(tmp_path / "m.onnx", nodes, weights, [1, 3, 4, 4])
    assert onnx_costs(path).peak_memory_bytes == 4 * (24 + 64 + 2 * 128)  # b and c; the sum is written over one of them


def test_the_users_own_input_is_not_written_over(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [helper.make_node("Sigmoid", ["x"], ["y"])], {}, [1, 3, 4, 4])
    assert onnx_costs(path).peak_memory_bytes == 4 * 2 * 48


def test_other_open_dimensions_are_asked_for(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], {}, ["batch", 3, "height", 4])
    with pytest.raises(ExportError, match="leaves dimension 2 open"):
        read_onnx(path)
    assert read_onnx(path, {"x": [1, 3, 5, 4]})[0].output == (3, 5, 4)


def test_a_truncated_file_is_one_line(tmp_path: Path) -> None:
    whole = save(tmp_path / "m.onnx", [conv("w", "x", "y")], {"w": (64, 3, 3, 3)}, [1, 3, 8, 8]).read_bytes()
    for cut in (0, 10, len(whole) // 2):
        path = tmp_path / "cut.onnx"
        path.write_bytes(whole[:cut])
        with pytest.raises(ExportError) as caught:
            read_onnx(path)
        assert "\n" not in caught.value.message


def term(operator: Operator, name: str, threads: int = 1) -> float:
    return float(cpu_terms([operator], threads)[CPU.index(name)])


def test_threads_idle_where_channels_are_few() -> None:
    def layer(channels: int) -> Operator:
        return Operator("conv", ((64, 8, 8),), (channels, 8, 8), (1, 1), weights=64 * channels)

    assert term(layer(64), "product_1x1", 4) == term(layer(64), "product_1x1")  # eight chunks for four threads
    assert term(layer(16), "product_1x1", 4) == pytest.approx(2**0.3 * term(layer(16), "product_1x1"))
    assert term(layer(16), "dispatch", 4) == term(layer(16), "dispatch")


def test_winograd_makes_36_products_of_a_tile_of_16_or_64_of_36() -> None:
    def wide(size: int) -> Operator:
        return Operator("conv", ((64, size, size),), (64, size, size), (3, 3), weights=64 * 64 * 9)

    assert term(wide(4), "winograd") == pytest.approx(36 * 64 * 64 / 1e6 / 7)
    assert term(wide(6), "winograd") == pytest.approx(64 * 64 * 64 / 1e6 / 7)  # not four tiles of 36
    strided = Operator("conv", ((64, 8, 8),), (64, 4, 4), (3, 3), stride=2, weights=64 * 64 * 9)
    assert term(strided, "winograd") == 0
    assert term(strided, "product") == pytest.approx(16 * 64 * 64 * 9 / 1e6 / 6)


def test_channels_cost_as_many_as_fill_a_vector_and_more_when_they_do_not_fill_it() -> None:
    def narrow(channels: int) -> Operator:
        return Operator("conv", ((64, 8, 8),), (channels, 8, 8), weights=64 * channels)

    assert term(narrow(61), "product_1x1") == term(narrow(63), "product_1x1")
    assert term(narrow(60), "product_1x1") < term(narrow(64), "product_1x1") < term(narrow(61), "product_1x1")


def test_a_soft_core_never_exceeds_its_peak_and_reaches_it_when_filled() -> None:
    for core, (pixels, ins, outs) in CORES.items():
        full = Operator("conv", ((ins, pixels, 1),), (outs, pixels, 1), (3, 3), weights=9 * ins * outs)
        assert cycles(full, core) == (9, 0)
        odd = Operator("conv", ((ins + 1, pixels, 1),), (outs, pixels, 1), (3, 3), weights=9 * (ins + 1) * outs)
        assert cycles(odd, core) == (18, 0)
        assert odd.macs <= 18 * pixels * ins * outs


def test_the_published_tables_are_what_was_published() -> None:
    settings, names, ms = latencies("cpu")
    assert len(names) == len(networks()) == 24
    assert int(np.isfinite(ms).sum()) == 4026
    macs = {name: total_macs(operators) / 1e6 for name, operators in networks().items()}
    assert macs["mobilenet"] == pytest.approx(569, abs=1)  # Howard et al. 2017, table 8
    assert macs["vgg16"] == pytest.approx(15470, abs=1)
    row = next(i for i, each in enumerate(settings) if each.device.startswith("AMD Ryzen Threadripper 3970X"))
    assert ms[names.index("squeezenet"), row] == 11.73


def test_a_shape_that_only_a_run_shows_is_seen_by_one(tmp_path: Path) -> None:
    """The size of a Reshape is computed from the input: zeros make it [2, 6]."""
    nodes = [
        helper.make_node("ReduceMin", ["x"], ["least"], keepdims=0),
        helper.make_node("Cast", ["least"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Add", ["whole", "wanted"], ["size"]),
        helper.make_node("Reshape", ["x", "size"], ["rows"]),
        helper.make_node("Relu", ["rows"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b"])],
        [onnx.numpy_helper.from_array(np.array([2, 6]), "wanted")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    onnx.save(model, tmp_path / "model.onnx")
    relu = read_onnx(tmp_path / "model.onnx")[-1]
    assert relu.kind == "activation"
    assert relu.output == (2, 6)
