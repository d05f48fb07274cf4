"""What TVM compiles for: this machine's CPU, another one (`aarch64`), or a GPU by its compute capability (`sm_86`)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from secateur.core.errors import ExportError, TargetUnavailableError
from secateur.export.tvm_kernels import Vectors

CROSS = {
    "aarch64": ({"mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72"}, "aarch64-linux-gnu-g++"),
}
"""CPUs other than this machine's: TVM's target, and the compiler that links for it."""
GPU = "cuda"
_BLOCK = {"max_num_threads": 1024, "max_threads_per_block": 1024, "thread_warp_size": 32}
_SHARED_BYTES = 48 * 1024
"""Of each block on every NVIDIA GPU since compute capability 2.0, unless a kernel asks for more."""


def is_gpu(arch: str) -> bool:
    return re.fullmatch(r"sm_\d{2,3}", arch) is not None


def check_arch(arch: str) -> None:
    """Whether TVM can compile for a processor here. For GPUs it writes source, which is compiled where it is loaded, so
    that no toolkit is needed here.

    Raises:
        ExportError: it cannot; the message says what is missing.
    """
    if is_gpu(arch):
        import tvm

        if tvm.support.libinfo().get("USE_CUDA", "OFF").upper() == "OFF":
            raise ExportError("this TVM was built without CUDA", "install one that was built with it")
    elif arch not in ("", *CROSS):
        raise ExportError(
            f'TVM is not set up for "{arch}"',
            f"it compiles for this machine, for {', '.join(CROSS)}, and for NVIDIA GPUs (sm_86 for capability 8.6)",
        )


def target_of(arch: str = "") -> Any:
    """TVM's target: this machine's CPU with all that it has, one of CROSS, or a GPU."""
    import tvm

    if is_gpu(arch):
        gpu = {"kind": GPU, "arch": arch, "max_shared_memory_per_block": _SHARED_BYTES, **_BLOCK}
        return tvm.target.Target(gpu, host="llvm")
    if arch:
        return tvm.target.Target({"kind": "llvm", "num-cores": 4, **CROSS[arch][0]})
    cpu = str(tvm.target.codegen.llvm_get_system_cpu())
    return tvm.target.Target({"kind": "llvm", "mcpu": cpu, "num-cores": os.cpu_count() or 1})


def vectors(target: Any) -> Vectors:
    """Width of a CPU's vector registers in floats; 32 registers leave 24 accumulators, 16 leave 12."""
    import tvm

    width = int(tvm.target.codegen.llvm_get_vector_width(target)) // 32
    many = width >= 16 or "aarch64" in str(target.attrs.get("mtriple", ""))
    return Vectors(max(width, 4), 24 if many else 12)


def check_gpu(library: Path, arch: str) -> None:
    """Whether this machine's first GPU runs what was made for a compute capability.

    Raises:
        TargetUnavailableError: there is none, or another one.
    """
    import tvm

    gpu = tvm.cuda()
    if not gpu.exist:
        raise TargetUnavailableError(
            f"{library.name} was compiled for an NVIDIA GPU ({arch}), there is none here", "run it there"
        )
    here = f"sm_{gpu.compute_version.replace('.', '')}"
    if here != arch:
        raise TargetUnavailableError(
            f"{library.name} was compiled for a GPU of kind {arch}, this is {here}", f"export it with --arch {here}"
        )
