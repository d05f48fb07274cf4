"""The wheel: the package's files and no others, and it works where there is no repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
LARGEST_MB = 25
"""Of the wheel; most of it are the trained models."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing an earlier build left behind gets in."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for folder in sorted(set(map(folder_of, SETUPTOOLS["packages"]))):
        shutil.copytree(
            ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(built), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = built.glob("*.whl")
    return path


def folder_of(package: str) -> str:
    """secateur.compress.dataflow → compress/dataflow"""
    top = ".".join(package.split(".")[:2])
    return package.replace(top, SETUPTOOLS["package-dir"].get(top, top.replace(".", "/")), 1).replace(".", "/")


def expected() -> set[str]:
    """Every source file of the listed packages, and their data, as installed."""
    found = set()
    for package in SETUPTOOLS["packages"]:
        folder = ROOT / folder_of(package)
        for pattern in ("*.py", *SETUPTOOLS["package-data"].get(package, ())):
            paths = [path for path in folder.glob(pattern) if path.is_file() and "__pycache__" not in path.parts]
            found |= {f"{package.replace('.', '/')}/{path.relative_to(folder).as_posix()}" for path in paths}
    return found


def test_it_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == expected()
    assert "secateur/py.typed" in names
    assert "secateur/workloads/weights/digits.safetensors" in names
    assert "secateur/workloads/bundles/scenes-elastic/manifest.json" in names
    assert wheel.stat().st_size < LARGEST_MB * 1e6


def test_it_works_where_there_is_no_repository(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    answers = [run(tmp_path, "select", "scenes-elastic", "--budget", "flops<=50%"), run(tmp_path, "inspect", "digits")]
    assert [str(tmp_path) in answer["where"] for answer in answers] == [True, True]
    assert answers[0]["budget_met"]
    assert set(answers[1]["tasks"]) == {"left", "right"}


def run(folder: Path, *args: str) -> dict[str, object]:
    """The JSON answer of `secateur ARGS`, and where the package was found."""
    script = (
        "import secateur, sys; from secateur.cli.app import main; print(secateur.__file__, file=sys.stderr); main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *args, "--json"], capture_output=True, text=True, cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder / "site")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "where": done.stderr.splitlines()[0]}
