"""Speaks as the C++ runner does, with ncnn's Python package: what loopback devices run in tests.

fake_runner.py [--threads N ...] MODEL=SHAPE[,SHAPE...]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import ncnn
import numpy as np


def main() -> None:
    named = [each for each in sys.argv[1:] if "=" in each]
    print("ncnn 1.0.test\nthreads 1")
    if not named:
        sys.exit("secateur-ncnn: name a model")
    calls = {}
    for each in named:
        path, _, shapes = each.partition("=")
        net = ncnn.Net()
        net.opt.use_fp16_arithmetic = net.opt.use_fp16_storage = net.opt.use_fp16_packed = False
        assert net.load_param(f"{path}.param") == 0
        assert net.load_model(f"{path}.bin") == 0
        content, start, mats = np.fromfile(f"{path}.in", np.float32), 0, []
        for shape in ([int(size) for size in text.split("x")] for text in shapes.split(",")):
            size = int(np.prod(shape))
            mats.append(ncnn.Mat(np.ascontiguousarray(content[start : start + size].reshape(shape))).clone())
            start += size
        assert start == len(content)
        calls[path] = (net, mats)
        outputs = infer(net, mats)
        for name, value in outputs.items():
            print("output", path, name, "x".join(map(str, value.shape)))
        Path(f"{path}.out").write_bytes(b"".join(value.tobytes() for value in outputs.values()))
    print("clock_khz before 1800000\ntemperature_mc before 41500")
    for _ in range(10):
        for path, (net, mats) in calls.items():
            start = time.perf_counter()
            infer(net, mats)
            print("sample", path, f"{1e3 * (time.perf_counter() - start):.6f}")
    print("done", 10 * len(calls))


def infer(net: ncnn.Net, mats: list[ncnn.Mat]) -> dict[str, np.ndarray]:
    with net.create_extractor() as extractor:
        for name, mat in zip(net.input_names(), mats, strict=True):
            extractor.input(name, mat)
        return {name: np.array(extractor.extract(name)[1], np.float32) for name in net.output_names()}


if __name__ == "__main__":
    main()
