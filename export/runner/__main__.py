"""Build the runner for a device:

python -m secateur.export.runner --ncnn path/to/ncnn --compiler aarch64-linux-gnu-g++ -o secateur-ncnn
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from secateur.core.errors import SecateurError
from secateur.export.runner.build import Toolchain, build_runner


def main() -> int:
    """The exit code; errors are one line each."""
    parser = argparse.ArgumentParser(prog="python -m secateur.export.runner", description="Build the runner of ncnn.")
    parser.add_argument("--ncnn", type=Path, required=True, help="ncnn's source folder, or an installed ncnn")
    parser.add_argument("--compiler", help="C++ compiler of the device (default: this machine's)")
    parser.add_argument("--toolchain", type=Path, help="CMake toolchain file, such as that of Android's NDK")
    parser.add_argument("--define", action="append", default=[], metavar="NAME=VALUE", help="passed on to CMake")
    parser.add_argument("--jobs", type=int, default=1, help="compilers at a time")
    parser.add_argument("-o", "--output", type=Path, default=Path("secateur-ncnn"))
    asked = parser.parse_args()
    try:
        toolchain = Toolchain(asked.compiler, asked.toolchain, tuple(asked.define))
        print(build_runner(asked.ncnn, asked.output, toolchain, jobs=asked.jobs))
    except SecateurError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
