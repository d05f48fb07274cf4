"""Tuning keeps the fastest tile of each product, starts with the heaviest, and remembers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, save

from secateur.export import tvm_tune
from secateur.export.tvm_format import TvmModel, compile_onnx
from secateur.export.tvm_kernels import Geometry, Tile, Vectors
from secateur.export.tvm_lower import define
from secateur.export.tvm_products import Product, convolution, matrix
from secateur.export.tvm_schedule import schedule_module
from secateur.export.tvm_targets import target_of, vectors
from secateur.export.tvm_tune import Recorder, chooser, known_tiles, tune

CPU = Vectors(16, 24)
needs_tvm = pytest.mark.skipif(not importlib.util.find_spec("tvm"), reason="needs secateur[tvm]")


@given(st.integers(1, 500), st.integers(1, 500), st.sampled_from([Vectors(16, 24), Vectors(8, 12), Vectors(4, 24)]))
def test_tiles_fit_the_registers_and_the_best_wastes_least(rows: int, columns: int, cpu: Vectors) -> None:
    tiles = Tile.ranked(rows, columns, cpu)
    assert all(1 <= tile.rows * tile.vectors <= cpu.accumulators for tile in tiles)
    assert tiles[0].rows <= rows


def test_rows_of_a_prime_number_are_not_taken_one_by_one() -> None:
    """197 tokens of a vision transformer: one by one would wait for every addition."""
    assert Tile.ranked(197, 768, CPU)[0].rows > 4


def recorded(*sizes: int) -> Recorder:
    recorder = Recorder({}, CPU)
    for size in sizes:
        recorder(matrix((8, size), np.zeros((size, size), np.float32), CPU))
    return recorder


def test_the_fastest_is_kept_and_trials_go_to_the_heaviest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def milliseconds(product: Product, tile: Tile, *_: object) -> float:
        tried.append(product.key)
        return abs(tile.rows - 2) + tile.vectors / 10

    monkeypatch.setattr(tvm_tune, "_milliseconds", milliseconds)
    file, recorder = tmp_path / "cache" / "tiles.json", recorded(32, 128, 64)
    known = tune(recorder, file, None, CPU, trials=tvm_tune.CANDIDATES + 3)
    heavy, second = (recorder.products[f"matmul 8x{size} to {size}"].key for size in (128, 64))
    assert list(known) == [heavy, second], "the lightest product got no trial"
    assert tried.count(heavy) == tvm_tune.CANDIDATES
    assert tried.count(second) == 3
    candidates = Tile.ranked(8, 128, CPU)[: tvm_tune.CANDIDATES]
    assert known[heavy] == min(candidates, key=lambda tile: abs(tile.rows - 2) + tile.vectors / 10)
    assert known_tiles(file) == known
    assert chooser(file, CPU)(recorder.products[heavy]) == known[heavy]
    tried.clear()
    tune(recorded(128), file, None, CPU, trials=100)
    assert tried == [], "what is known is not measured again"


@pytest.mark.parametrize("content", ["", "[]", '{"a": 3}', '{"a": [1]}'])
def test_a_damaged_cache_is_found_again(content: str, tmp_path: Path) -> None:
    file = tmp_path / "tiles.json"
    file.write_text(content)
    assert known_tiles(file) == {}


@needs_tvm
def test_a_tuned_library_computes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    weight = np.random.default_rng(0).standard_normal((40, 24)).astype(np.float32)
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [9, k]) for n, k in (("x", 40), ("y", 24))]
    stored = helper.make_tensor("w", TensorProto.FLOAT, weight.shape, weight.ravel())
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", values[:1], values[1:], [stored])
    file = tmp_path / "m.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    model = TvmModel(compile_onnx(file, tmp_path / "m.tvm.so", trials=4))
    (tiles,) = (tmp_path / "cache" / "tvm").iterdir()
    assert list(known_tiles(tiles)) == ["matmul 9x40 to 24"]
    x = np.random.default_rng(1).standard_normal((9, 40)).astype(np.float32)
    np.testing.assert_allclose(model.run([x])["y"], x @ weight, rtol=1e-4, atol=1e-5)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 200))
def test_tiles_of_several_lines_hold_whole_ones(rows: int, lines: int, columns: int) -> None:
    tiles = Tile.ranked(rows, columns, CPU, lines)
    assert all(tile.rows <= rows or tile.rows % rows == 0 for tile in tiles)
    assert max(tile.rows for tile in tiles) <= rows * lines


def test_a_depthwise_tile_has_few_sums_along_the_line() -> None:
    assert Tile.ranked(32, 64, CPU, depthwise=True)[0] == Tile(8, 1)


@needs_tvm
@pytest.mark.parametrize(
    ("size", "stride", "channels"), [((4, 4), 1, (64, 48)), ((5, 3), 1, (7, 20)), ((9, 6), 2, (64, 33))]
)
def test_every_tile_of_a_convolution_computes_the_same(
    size: tuple[int, int], stride: int, channels: tuple[int, int]
) -> None:
    """Whole lines, several of them, and lines that the last tile computes again; one place or four at a time."""
    import tvm
    from tvm.s_tir.analysis import OOBChecker

    inputs, outputs = channels
    noise = np.random.default_rng(0)
    x, weight = (noise.standard_normal(shape, np.float32) for shape in ((1, *size, inputs), (3, 3, inputs, outputs)))
    wanted = torch.nn.functional.conv2d(
        torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(weight).permute(3, 2, 0, 1), None, stride, 1
    ).permute(0, 2, 3, 1)
    target = target_of()
    cpu = vectors(target)
    geometry = Geometry((stride, stride), (1, 1, 1, 1), (1, 1))
    product = convolution(x.shape, tuple(wanted.shape), weight, geometry, 1, cpu)
    tiles = product.tiles(cpu)
    tall = [tile for tile in tiles if tile.rows > wanted.shape[2]]
    assert tall, "a picture as small as this has tiles of several lines"
    for tile in tiles:
        function, _ = define(product, tile)
        OOBChecker()(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}))  # reads what is there only
    for tile in (tiles[0], tall[0], tall[-1]):
        function, panels = define(product, tile)
        module = schedule_module(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}), cpu)
        found = tvm.runtime.empty(tuple(wanted.shape), "float32")
        tvm.compile(module, target=target)["main"](*map(tvm.runtime.tensor, (x, panels)), found)
        torch.testing.assert_close(torch.from_numpy(found.numpy()), wanted, rtol=1e-4, atol=1e-4)
