"""The program that runs networks of ncnn on a phone or board: built from `main.cpp` with ncnn's own source.

    build_runner(Path("ncnn"), Path("secateur-ncnn"), Toolchain("aarch64-linux-gnu-g++"))

ncnn's source comes from its repository, or from the source archive of the Python package (`pip download ncnn
--no-binary ncnn`). It is compiled once for each compiler, in the user's cache folder, which takes minutes; after that
only the runner is.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from secateur.core.cache import cache_folder
from secateur.core.errors import ExportError, TargetUnavailableError
from secateur.core.files import writing

NAME = "secateur-ncnn"


@dataclass(frozen=True)
class Toolchain:
    """How programs for a device are compiled.

    Args:
        compiler: C++ compiler; this machine's own when None. The C compiler is the one of the same name.
        file: a toolchain file of CMake instead, such as that of Android's NDK.
        definitions: `NAME=VALUE` for CMake, such as `ANDROID_ABI=arm64-v8a`.
    """

    compiler: str | None = None
    file: Path | None = None
    definitions: tuple[str, ...] = ()

    def arguments(self) -> list[str]:
        """For CMake.

        Raises:
            TargetUnavailableError: the compiler is not installed.
        """
        found = [f"-D{each}" for each in self.definitions]
        if self.file is not None:
            found.append(f"-DCMAKE_TOOLCHAIN_FILE={self.file.resolve()}")
        if self.compiler is not None:
            found += self._of_compiler(self.compiler)
        return found

    def _of_compiler(self, compiler: str) -> list[str]:
        if shutil.which(compiler) is None:
            package = f"g++-{compiler.removesuffix('-g++')}" if compiler.endswith("-linux-gnu-g++") else compiler
            raise TargetUnavailableError(f"{compiler} is not installed", f"on Debian: apt install {package}")
        arguments = [f"-DCMAKE_CXX_COMPILER={compiler}", f"-DCMAKE_C_COMPILER={re.sub('g[+][+]$', 'gcc', compiler)}"]
        processor = re.match(r"([a-z0-9_]+)-linux-", Path(compiler).name)
        if processor:  # of another machine, unless it says otherwise
            arguments += ["-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_SYSTEM_PROCESSOR={processor[1]}"]
        return arguments


def build_runner(ncnn: Path, output: Path, toolchain: Toolchain = Toolchain(), *, jobs: int = 1) -> Path:
    """Build the runner, linked statically.

    Args:
        ncnn: the folder of ncnn's source, or one that it was installed in.
        output: where the program is put.
        jobs: compilers that run at a time.

    Raises:
        TargetUnavailableError: CMake or the compiler is not installed.
        ExportError: no ncnn there, or it does not compile; with the compiler's first complaint.
    """
    cmake = shutil.which("cmake")
    if cmake is None:
        raise TargetUnavailableError("cmake is not installed", "on Debian: apt install cmake g++")
    arguments = [*toolchain.arguments(), _where(ncnn)]
    folder = cache_folder() / "ncnn" / _key(arguments)
    folder.mkdir(parents=True, exist_ok=True)
    with resources.as_file(resources.files("secateur.export.runner")) as source:
        _call([cmake, "-S", str(source), "-B", str(folder), *arguments])
        _call([cmake, "--build", str(folder), "--parallel", str(jobs), "--target", NAME])
    with writing(output) as temporary:
        shutil.copy(folder / NAME, temporary)
    return output


def _where(ncnn: Path) -> str:
    """For CMake: source or installed."""
    if (ncnn / "src" / "net.cpp").is_file() and (ncnn / "CMakeLists.txt").is_file():
        return f"-DNCNN_SOURCE={ncnn.resolve()}"
    if (ncnn / "lib" / "cmake" / "ncnn" / "ncnnConfig.cmake").is_file():
        return f"-DNCNN_SDK={ncnn.resolve()}"
    raise ExportError(
        f"{ncnn} holds no ncnn", "unpack its source there: from its repository, or pip download ncnn --no-binary ncnn"
    )


def _key(arguments: list[str]) -> str:
    return hashlib.sha256("\n".join(arguments).encode()).hexdigest()[:16]


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603
    if done.returncode:
        lines = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
        said = next(
            (line for line in lines if re.search(r"error|attempted", line)), lines[0] if lines else "no message"
        )
        raise ExportError(f"the runner does not compile: {said[:200]}", "see docs/targets.md for what it needs")
