"""A soft core as ZigZag sees it: the same array, memories and layers in somebody else's model of cycles and energy.

    for layer in cross_check(get("fpga:zcu102"), read_onnx("model.onnx")):
        print(layer.operator.name, layer.ours.cycles, layer.zigzag.cycles)

ZigZag (Mei et al., IEEE Transactions on Computers 2021; the package zigzag-dse, extra [fpga]) searches the order of a
layer's loops, counts every access to every memory, and overlaps transfers with arithmetic where memory is free for it.
Nothing in it is fitted to a board. Our predictor (profiles/latency/soft_core.py) knows no loops: constants that were
fitted to whole networks, times shapes. Where the two differ, one of them is wrong; docs/latency.md says where they do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from secateur.core.errors import DeviceError, MissingExtraError
from secateur.core.scratch import Scratch
from secateur.profiles.latency.operators import Operator
from secateur.profiles.latency.soft_core import CORES, SoftCore, cycles
from secateur.targets.device import Device
from secateur.targets.predict import energy_mj, latency_model

BLOCK_RAMS = {
    "B512": 72, "B800": 90, "B1024": 104, "B1152": 121, "B1600": 126, "B2304": 165, "B3136": 208, "B4096": 255,
}  # fmt: skip
"""Blocks of on-chip memory of a core (AMD, PG338 4.0, "RAM usage", low)."""
BLOCK_BITS = 32 * 1024
BUFFER_PJ_PER_BIT = 10 / 64 * 0.35
"""Horowitz, ISSCC 2014: 10 pJ for 64 bits of an 8 KB memory at 45 nm, scaled to 16 nm as the devices' files do."""
SUM_BITS = 32
ARRAY = ("D1", "D2", "D3")
"""Pixels, input channels (which one sum takes together), output channels."""
LOOPS = 4
"""Into how many factors ZigZag splits the loops of a layer; all their orders are tried."""


@dataclass(frozen=True)
class Cost:
    """One layer on a soft core, by one of the models.

    Attributes:
        busy: cycles in which the array multiplies, if it never waited.
        cycles: all of them, with the waiting for memory.
        energy_mj: of products and of memory.
    """

    busy: float
    cycles: float
    energy_mj: float


@dataclass(frozen=True)
class Layer:
    """A layer in both models."""

    operator: Operator
    ours: Cost
    zigzag: Cost


def cross_check(device: Device, operators: Sequence[Operator]) -> list[Layer]:
    """Each convolution and product of a model in both models; other operators are in neither list.

    The time to start a run is in no layer. ZigZag takes seconds for each layer it has not seen in this call.

    Raises:
        DeviceError: the device is no soft core, or its file tells no energies or bandwidth.
        MissingExtraError: ZigZag is not installed.
    """
    core = latency_model(device)
    if not isinstance(core, SoftCore) or not (device.bandwidth and device.energy_per_mac and device.energy_per_byte):
        raise DeviceError(
            f"{device.name} cannot be checked with ZigZag",
            "it takes soft cores (fpga:zcu102) whose file tells bandwidth, energy_per_mac and energy_per_byte",
        )
    products = [each for each in operators if each.kind in ("conv", "linear", "matmul")]
    unique = list(dict.fromkeys(products))
    found = dict(zip(unique, _zigzag(_hardware(core, device), core, unique), strict=True))
    return [Layer(each, _ours(core, device, each), found[each]) for each in products]


def _ours(core: SoftCore, device: Device, operator: Operator) -> Cost:
    ms = sum(core.layers([operator]))
    return Cost(sum(cycles(operator, core.core)), ms / 1e3 * core.clock_hz, energy_mj(device, [operator]) or 0.0)


def _zigzag(hardware: dict[str, Any], core: SoftCore, operators: Sequence[Operator]) -> Iterable[Cost]:
    """ZigZag's figures of each operator, with the fastest order of its loops."""
    try:
        from zigzag.mapping.temporal_mapping import TemporalMappingType
        from zigzag.stages.evaluation.cost_model_evaluation import CostModelStage
        from zigzag.stages.main import MainStage
        from zigzag.stages.mapping.spatial_mapping_generation import SpatialMappingGeneratorStage
        from zigzag.stages.mapping.temporal_mapping_generator_stage import TemporalMappingGeneratorStage
        from zigzag.stages.parser.accelerator_parser import AcceleratorParserStage
        from zigzag.stages.parser.workload_parser import WorkloadParserStage
        from zigzag.stages.results.reduce_stages import MinimalLatencyStage
        from zigzag.stages.workload_iterator import WorkloadStage
    except ImportError as error:
        raise MissingExtraError("zigzag-dse", "fpga") from error
    if not operators:
        return []
    with Scratch() as temporary:
        files = {"accelerator": Path(temporary) / "core.yaml", "mapping": Path(temporary) / "mapping.yaml"}
        layers = [_mapping(_name(index), core, each.depthwise) for index, each in enumerate(operators)]
        mapping = [_mapping("default", core, False), *layers]
        for path, document in zip(files.values(), (hardware, mapping), strict=True):
            path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")  # inner memories come first
        stages = [
            WorkloadParserStage, AcceleratorParserStage, WorkloadStage, MinimalLatencyStage,
            SpatialMappingGeneratorStage, MinimalLatencyStage, TemporalMappingGeneratorStage, CostModelStage,
        ]  # fmt: skip
        found = MainStage(
            stages, workload=[_layer(index, each) for index, each in enumerate(operators)],
            **{name: str(path) for name, path in files.items()}, loma_lpf_limit=LOOPS, loma_show_progress_bar=False,
            nb_mappings_generated=1, enable_mix_spatial_mapping_generation=False,
            access_same_data_considered_as_no_access=True, temporal_mapping_type=TemporalMappingType("uneven"),
        ).run()  # fmt: skip
    return [Cost(each.ideal_temporal_cycle, each.latency_total2, each.energy_total / 1e9) for each, _ in found]


def _hardware(core: SoftCore, device: Device) -> dict[str, Any]:
    """The core in ZigZag's words: array, registers, one buffer that feeds the array without a stall, and DRAM."""
    assert device.bandwidth is not None
    assert device.energy_per_mac is not None
    assert device.energy_per_byte is not None
    pixels, ins, outs = CORES[core.core]
    dram = int(8 * device.bandwidth.value / core.clock_hz)  # bits in a cycle
    feed = 8 * (pixels * ins + ins * outs) + 2 * SUM_BITS * pixels * outs
    pj_per_dram_bit = 1e12 * device.energy_per_byte.value / 8
    return {
        "name": core.core,
        "memories": {
            # two words each: one is used while the next comes
            "weight_register": _memory(2 * 8, 8, 0.0, ["I2"], ["D1"]),
            "sum_register": _memory(2 * SUM_BITS, SUM_BITS, 0.0, ["O"], ["D2"]),
            "buffer": _memory(BLOCK_RAMS[core.core] * BLOCK_BITS, feed, BUFFER_PJ_PER_BIT, ["I1", "I2", "O"], ARRAY),
            "dram": _memory(10**12, dram, pj_per_dram_bit, ["I1", "I2", "O"], ARRAY, shared_port=True),
        },
        "operational_array": {
            "unit_energy": 1e12 * device.energy_per_mac.value, "unit_area": 0.0, "dimensions": list(ARRAY),
            "sizes": [pixels, ins, outs],
        },
    }  # fmt: skip


def _memory(
    bits: int, port_bits: int, pj_per_bit: float, operands: list[str], serves: Sequence[str], shared_port: bool = False
) -> dict[str, Any]:
    """A memory with a port to read and one to write, or one for both; `serves` are the dimensions that share it."""
    reads = [f"{operand}, {way}" for operand in operands for way in (("tl", "th") if operand == "O" else ("tl",))]
    writes = [f"{operand}, {way}" for operand in operands for way in (("fh", "fl") if operand == "O" else ("fh",))]
    ports = {"read_write": reads + writes} if shared_port else {"read": reads, "write": writes}
    return {
        "size": bits, "r_cost": pj_per_bit * port_bits, "w_cost": pj_per_bit * port_bits, "area": 0.0, "latency": 1,
        "operands": operands, "served_dimensions": list(serves),
        "ports": [
            {"name": f"{''.join(word[0] for word in kind.split('_'))}_port_1", "type": kind,
             "bandwidth_min": min(64, port_bits), "bandwidth_max": port_bits, "allocation": allocation}
            for kind, allocation in ports.items()
        ],
    }  # fmt: skip


def _mapping(name: str, core: SoftCore, depthwise: bool) -> dict[str, Any]:
    """Which loop each dimension of the array takes."""
    pixels, ins, outs = CORES[core.core]
    across = {"D2": ["C, 1"], "D3": [f"G, {outs}"]} if depthwise else {"D2": [f"C, {ins}"], "D3": [f"K, {outs}"]}
    return {
        "name": name, "spatial_mapping": {"D1": [f"OX, {pixels}"], **across},
        "memory_operand_links": {"O": "O", "W": "I2", "I": "I1"},
    }  # fmt: skip


def _name(index: int) -> str:
    return f"layer{index}"


def _layer(index: int, operator: Operator) -> dict[str, Any]:
    """An operator in ZigZag's words. A product of matrices is a convolution of 1x1 over its rows."""
    if operator.kind == "conv":
        (ins, outs), groups, (height, width) = operator.channels, operator.groups, operator.output[1:]
        before = operator.inputs[0][1:]
    else:
        outs, groups = operator.output[-1], 1
        height, width = 1, operator.elements_out // outs
        ins, before = operator.macs // operator.elements_out, (height, width)
    size = {
        "G": groups, "K": outs // groups, "C": ins // groups, "OY": height, "OX": width, "FY": operator.kernel[0],
        "FX": operator.kernel[1],
    }  # fmt: skip
    reach = [
        (out - 1) * operator.stride + operator.dilation * (taps - 1) + 1
        for out, taps in zip((height, width), operator.kernel, strict=True)
    ]
    read = [min(have, needed) for have, needed in zip(before, reach, strict=True)]
    return {
        "id": index, "name": _name(index), "operator_type": "Conv",
        "equation": "O[g][k][oy][ox]+=W[g][k][c][fy][fx]*I[g][c][iy][ix]",
        "dimension_relations": [f"i{x}={operator.stride}*o{x}+{operator.dilation}*f{x}" for x in "yx"],
        "loop_dims": list(size), "loop_sizes": list(size.values()),
        "pr_loop_dims": ["IY", "IX"], "pr_loop_sizes": read,
        "padding": [[needed - have, 0] for have, needed in zip(read, reach, strict=True)],
        "operand_precision": {"I": 8, "W": 8, "O": SUM_BITS, "O_final": 8},
        "operand_source": {"I": index, "W": index},
    }  # fmt: skip
