"""The NVIDIA GPUs of this machine, as the driver tells them: at once, since nothing heavy is imported."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_LONGEST_NAME = 256


@cache
def gpus() -> tuple[str, ...]:
    """Names of the GPUs that this process may use, in the driver's order; none where there is no driver.

    CUDA driver API: cuInit, cuDeviceGetCount, cuDeviceGet and cuDeviceGetName, each 0 when it worked.
    """
    try:
        driver = ctypes.CDLL(_DRIVER)
        count = ctypes.c_int()
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
            return ()
    except (OSError, AttributeError):
        return ()
    return tuple(_name(driver, number) for number in range(count.value))


def _name(driver: ctypes.CDLL, number: int) -> str:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(_LONGEST_NAME)
    if driver.cuDeviceGet(ctypes.byref(device), number) or driver.cuDeviceGetName(name, _LONGEST_NAME, device):
        return "NVIDIA GPU"
    return name.value.decode(errors="replace")
