"""The accelerator's numbers, from YAML: what moves and multiplies in a cycle, and what fits on the chip."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from secateur.core.errors import DeviceError


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Chip(_Model):
    """On-chip memory of the FPGA, in blocks: BRAM of 18 Kib, URAM of 288 Kib."""

    part: str
    bram18: int = Field(ge=0)
    uram: int = Field(ge=0)
    dsp: int = Field(ge=0)
    source: str = Field(min_length=1)


class Energy(_Model):
    """Power while running, in watts, and the energy of a byte from DRAM, in picojoules."""

    watts: float = Field(gt=0)
    dram_pj_per_byte: float = Field(ge=0)
    source: str = Field(min_length=1)


class Board(_Model):
    """One accelerator.

    Attributes:
        clock_mhz: of the kernels. axi_bits: moved to or from DRAM in a cycle, weights and features each on a port.
        feature_bits, weight_bits: fixed-point sizes.
        linear_in, linear_out: a matrix unit multiplies a tile of that size in a cycle.
        attention_rows: queries that one pass over the keys serves.
        reorder: work expert by expert; otherwise token by token, each loading its own experts.
        double_buffer: load the next weights while computing.
        stage_overhead: cycles that a kernel call costs besides its data.
        error_pct: how far a published latency lies from the model's, in percent of it.
        initiation: cycles between two starts of a pipelined loop (1: a tile, or a word, every cycle).
    """

    name: str
    clock_mhz: float = Field(gt=0)
    axi_bits: int = Field(gt=0)
    feature_bits: int = Field(gt=0)
    weight_bits: int = Field(gt=0)
    linear_in: int = Field(gt=0)
    linear_out: int = Field(gt=0)
    attention_rows: int = Field(gt=0)
    reorder: bool = True
    double_buffer: bool = True
    stage_overhead: int = Field(default=0, ge=0)
    initiation: int = Field(default=1, ge=1)
    error_pct: float | None = Field(default=None, ge=0)
    chip: Chip
    energy: Energy
    source: str = Field(min_length=1)

    @property
    def features_per_word(self) -> int:
        return self.axi_bits // self.feature_bits

    @property
    def weights_per_word(self) -> int:
        return self.axi_bits // self.weight_bits


def board(name: str | os.PathLike[str]) -> Board:
    """A board by name ("zcu102", "zcu104"), or from the user's own YAML file.

    Raises:
        DeviceError: no such board or file, or a description with a mistake; the message names file and key.
    """
    here = resources.files("secateur.targets.edge_moe")
    known = sorted(file.name.removesuffix(".yaml") for file in here.iterdir() if file.name.endswith(".yaml"))
    text = os.fspath(name)
    path = Path(str(here / f"{text}.yaml")) if text in known else Path(text)
    if text not in known and not text.endswith((".yaml", ".yml")):
        raise DeviceError(f'unknown board "{text}"', f"the boards are: {', '.join(known)}; or give a YAML file")
    try:
        document: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Board.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DeviceError(
            f"{path}: {where}: {first['msg']}", f"the keys are: {', '.join(Board.model_fields)}"
        ) from error
    except OSError as error:
        raise DeviceError(f"cannot read {path}: {error.strerror}", "give the path of a board's YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise DeviceError(f"{path} is no YAML: {str(error).splitlines()[0]}", "see docs/experts.md") from error
