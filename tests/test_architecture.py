"""The house itself: which way imports may point, how long a file may be, what start-up may load, what is installed."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("secateur", "compress", "export", "targets", "profiles", "workloads")
MAY_IMPORT = {
    "core": {"core"},
    "profiles": {"profiles", "core"},
    "workloads": {"workloads", "core"},
    "export": {"export", "core", "profiles"},
    "targets": {"targets", "core", "profiles", "export"},
    "compress": {"compress", "core", "profiles", "targets"},
    "top": {"top", "core", "profiles", "workloads", "export", "targets", "compress"},
}
"""Each part, and whose modules it may import. The top is secateur/__init__.py, api.py and cli/."""


def sources() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def part_of(module: str) -> str:
    """`secateur.core.budget` → core; `secateur.cli` and `secateur` itself → top."""
    second = [*module.split("."), ""][1]
    return second if second in MAY_IMPORT else "top"


def part_of_file(path: Path) -> str:
    module = ".".join(path.relative_to(ROOT).parts)
    return part_of(module if module.startswith("secateur.") else f"secateur.{module}")


def imports(source: str) -> set[str]:
    """Names of our own modules that a source file imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found |= {f"secateur.{a.name}" for a in node.names} if module == "secateur" else {module}
    return {name for name in found if name.startswith(".") or name.split(".")[0] in FOLDERS}


def wrong_arrows(part: str, source: str) -> list[str]:
    """Imports against the table, relative ones, and ones that bypass the package (`from compress import ...`)."""
    return sorted(
        name for name in imports(source) if name.split(".")[0] != "secateur" or part_of(name) not in MAY_IMPORT[part]
    )


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_downwards(path: Path) -> None:
    assert wrong_arrows(part_of_file(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("core", "import secateur.profiles.graph"),
        ("profiles", "from secateur import compress"),
        ("profiles", "import secateur as sc"),
        ("export", "from secateur.targets.device import Device"),
        ("compress", "def late():\n    from secateur.api import prune"),
        ("compress", "if True:\n    import secateur.workloads"),
        ("targets", "from secateur.cli.app import main"),
        ("compress", "from .graph import trace"),
        ("compress", "from compress.dataflow import trace"),
    ],
)
def test_the_check_sees_an_arrow_that_points_upwards(part: str, source: str) -> None:
    assert len(wrong_arrows(part, source)) == 1


def test_every_file_can_be_read_in_one_sitting() -> None:
    around = [path for folder in ("tests", "benchmarks", "docs") for path in (ROOT / folder).rglob("*.py")]
    long = {path.relative_to(ROOT).as_posix(): lines for path in [*sources(), *around] if (lines := length(path)) > 400}
    assert long == {}


def length(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_every_file_begins_with_its_idea() -> None:
    """A docstring at the top of whatever holds code; empty files only make a folder a package."""
    code = {path: path.read_text(encoding="utf-8") for path in sources()}
    untold = [path.as_posix() for path, text in code.items() if text.strip() and not ast.get_docstring(ast.parse(text))]
    assert untold == []


def test_every_folder_of_source_is_a_listed_package() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in sources()}
    packages = {name if name.split(".")[0] == "secateur" else f"secateur.{name}" for name in folders}
    assert packages == set(setuptools["packages"])


@pytest.mark.parametrize("module", ["secateur", "secateur.core.budget", "secateur.core.bundle", "secateur.core.task"])
def test_start_up_loads_nothing_heavy(module: str) -> None:
    heavy = ("torch", "numpy", "onnx", "onnxruntime", "sklearn", "matplotlib", "torchmetrics")
    script = f"import {module}, sys; print([name for name in {heavy} if name in sys.modules])"
    assert printed(script) == "[]"


def test_help_loads_the_command_line_alone() -> None:
    """Whatever a command needs besides, it loads when it runs."""
    heavy = ("torch", "numpy", "pydantic", "rich", "yaml", "jinja2")
    script = f"import secateur.cli.app, sys; print([name for name in {heavy} if name in sys.modules])"
    assert printed(script) == "[]"


def printed(script: str) -> str:
    """What a Python of its own prints."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT.anchor)
    return done.stdout.strip()
