"""TVM with Secateur's schedule against ONNX Runtime, one and two threads.

    python benchmarks/tvm_speed.py            # prints a table, writes benchmarks/results/tvm.json

Each engine runs in a process of its own; processes take turns, and whoever has no turn is stopped. Networks: the CNN
of `scenes`, a residual network with channel counts that no vector width divides, ResNet-18 and MobileNetV2 at 128 x 128
and a vision transformer (192 channels, 6 blocks, 64 tokens), all with random weights but the first.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.core import machine
from secateur.core.task import Task, Workload
from secateur.export.onnx import to_onnx
from secateur.export.onnx_session import OnnxModel
from secateur.export.tvm_format import TvmModel, compile_onnx
from secateur.profiles.timing import estimate, sample, summarise
from secateur.targets.apart import Process
from secateur.workloads import workload
from secateur.workloads.metrics import Accuracy

RESULT = Path(__file__).parent / "results" / "tvm.json"


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        same = stride == 1 and inputs == outputs
        self.skip = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


class Inverted(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, widen: int) -> None:
        super().__init__()
        inner = inputs * widen
        self.body = nn.Sequential(
            nn.Conv2d(inputs, inner, 1), nn.BatchNorm2d(inner), nn.ReLU6(),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner), nn.BatchNorm2d(inner), nn.ReLU6(),
            nn.Conv2d(inner, outputs, 1), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        n, count, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, count, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, count, width)
        x = x + self.out(mixed)
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    def __init__(self, width: int = 192, heads: int = 3, depth: int = 6) -> None:
        super().__init__()
        self.patch, self.blocks = (
            nn.Conv2d(3, width, 16, 16),
            nn.Sequential(*(Block(width, heads) for _ in range(depth))),
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 100)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patch(x).flatten(2).transpose(1, 2))).mean(1))


def resnet18(width: int) -> nn.Module:
    layers, inputs = [nn.Conv2d(3, width, 7, 2, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)], width
    for stage in range(4):
        for block in range(2):
            outputs = width * 2**stage
            layers.append(Residual(inputs, outputs, 2 if stage and not block else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 100))


def mobilenet_v2() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU6()]
    inputs = 32
    stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for widen, outputs, count, stride in stages:
        for block in range(count):
            layers.append(Inverted(inputs, outputs, 1 if block else stride, widen))
            inputs = outputs
    tail = [nn.Conv2d(320, 1280, 1), nn.BatchNorm2d(1280), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *tail, nn.Linear(1280, 100))


class OneTask(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.net(x)}


def networks() -> dict[str, Workload]:
    torch.manual_seed(0)
    found = {"scenes CNN": workload("scenes")}
    made = {
        "residual, 37 to 296 channels": (resnet18(37), 104),
        "ResNet-18": (resnet18(64), 128),
        "MobileNetV2": (mobilenet_v2(), 128),
        "ViT, 6 blocks of 192": (Transformer(), 128),
    }
    task = Task("logits", F.l1_loss, Accuracy(), "higher")
    for name, (net, size) in made.items():
        found[name] = Workload(name, OneTask(net).eval(), torch.randn(1, 3, size, size), (task,), [], [], [])
    return found


def compare(name: str, case: Workload, folder: Path, seconds: float) -> list[dict[str, Any]]:
    onnx_file = to_onnx(case.model, case, folder / "model.onnx", dynamic_batch=False)
    library = compile_onnx(onnx_file, folder / "model.tvm.so")
    inputs = [case.example_input.numpy()]
    theirs, ours = OnnxModel(onnx_file, 1).run(inputs), TvmModel(library).run(inputs)
    difference = max(float(np.abs(theirs[task] - ours[task]).max()) for task in theirs)
    rows = []
    for threads in (1, 2):
        with (
            Process("onnx", onnx_file, inputs, threads) as reference,
            Process("tvm", library, inputs, threads) as engine,
        ):
            turns = {"onnxruntime": reference.turn, "tvm": engine.turn}
            times = sample(turns, limit_s=seconds, precision=0.0, own_time=True)
        ratio = estimate([a / b for a, b in zip(times["tvm"], times["onnxruntime"], strict=True)])
        rows.append(
            {
                "network": name,
                "threads": threads,
                **{f"{key}_ms": summarise(values).as_json() for key, values in times.items()},
                "rounds": len(times["tvm"]),
                "tvm_over_onnxruntime": {"median": ratio.median, "low": ratio.low, "high": ratio.high},
                "max_abs_difference": difference,
            }
        )
        reference_ms, tvm_ms = (rows[-1][f"{key}_ms"]["median"] for key in turns)
        print(f"{name:30} threads {threads}  ONNX Runtime {reference_ms:7.2f} ms  TVM {tvm_ms:7.2f} ms", end="")
        print(f"  ratio {ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each network and number of threads")
    seconds = parser.parse_args().seconds
    rows = []
    for name, case in networks().items():
        with tempfile.TemporaryDirectory() as folder:
            rows += compare(name, case, Path(folder), seconds)
    import onnxruntime
    import tvm

    versions = {**machine.versions(), "tvm": tvm.__version__, "onnxruntime": onnxruntime.__version__}
    document = {"command": "python benchmarks/tvm_speed.py", "source": "measured", "machine": machine.describe()}
    RESULT.write_text(json.dumps({**document, "versions": versions, "results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
