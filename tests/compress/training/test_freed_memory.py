"""Memory that is freed between steps stays in the process, where a command asks for that."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from secateur.compress.speed import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "kept":
    keep_freed_memory()
for step in range(20):
    if step == 3:
        before = faults()
    tensors = [torch.ones(2**21) for _ in range(4)]
    del tensors
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_steps_after_the_first_take_no_fresh_memory() -> None:
    assert _faults("kept") < _faults("given back") / 10


def _faults(mode: str) -> int:
    """Page faults of 17 steps that allocate 32 MiB each. The C library is held to the thresholds it starts with, which
    it otherwise raises or not, as its heap happens to lie."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**17), "MALLOC_TRIM_THRESHOLD_": str(2**17)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True, env=environment
    )
    return int(done.stdout)
