"""Latency models: what a model would take on hardware that is not at hand, each figure with its stated error.

operators = read_onnx("model.onnx")                        # what a runtime executes, after fusion
published("cpu").device("Raspberry Pi 4", threads=4)       # from published whole-network figures
SoftCore("B4096", clock_hz=281e6)                          # a systolic soft core on an FPGA
"""

from secateur.profiles.latency.estimate import Estimate
from secateur.profiles.latency.operators import Operator
from secateur.profiles.latency.published import Population, published
from secateur.profiles.latency.read import read_onnx

__all__ = ["Estimate", "Operator", "Population", "published", "read_onnx"]
