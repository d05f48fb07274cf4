"""The journeys of the docs are walked: every block of a page runs, in order, in an empty folder.

- ```python runs in the page's own namespace; one that begins with `# NAME.py` is written to that file instead, as is
  ```yaml with `# NAME.yaml`.
- ```console: lines after `$ ` are commands, the others are what they show, stderr first. `...` stands for
  anything; figures may differ, and so whether a tolerated change is for the better; words may
  not. `$?` is the last command's exit code.
- A line "Not run by the tests: WHY." above a block skips it, and "Needs secateur[EXTRA]." where that extra is missing.
- A page that uses Fashion-MNIST is skipped where its files are missing.
"""

from __future__ import annotations

import doctest
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from secateur.cli.app import app
from secateur.cli.run import run
from secateur.workloads import multifashion

PAGES = sorted((Path(__file__).parents[1] / "docs" / "journeys").glob("*.md"))
EXTRAS = {"mobile": "ncnn", "openvino": "openvino", "tvm": "tvm", "fpga": "hls4ml", "scale": "optuna"}
BLOCK = re.compile(r"(?P<above>[^\n]*)\n\n```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
SAME = doctest.OutputChecker()
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """One fenced block of a page, and why it is not run, if so."""

    page: Path
    line: int
    kind: str
    text: str
    skipped: str | None

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [
        Block(page, text.count("\n", 0, each.start("text")), each["kind"], each["text"], why_not(each["above"]))
        for each in BLOCK.finditer(text)
    ]
    assert len(found) * 2 == text.count("```"), f"{page}: a block is not closed, or has no line above it"
    return found


def why_not(line: str) -> str | None:
    if told := re.search(r"Not run by the tests: (.+)", line):
        return told[1]
    needed = re.findall(r"Needs `secateur\[(\w+)\]`", line)
    missing = [extra for extra in needed if importlib.util.find_spec(EXTRAS[extra]) is None]
    return f"the extra [{missing[0]}] is not installed" if missing else None


@pytest.fixture
def page_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to be in, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name, value in {
        "COLUMNS": "100",
        "XDG_CONFIG_HOME": f"{tmp_path}/.config",
        "XDG_CACHE_HOME": f"{tmp_path}/.cache",
    }.items():
        monkeypatch.setenv(name, value)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_the_page_runs_and_shows_what_it_says(
    page: Path, page_folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "multifashion" in page.read_text(encoding="utf-8") and not multifashion.DEBIAN.is_dir():
        pytest.skip("Fashion-MNIST is not installed")
    namespace: dict[str, object] = {"__name__": page.stem}
    for block in blocks(page):
        if block.skipped is None:
            play(block, namespace, capfd, monkeypatch)


def play(
    block: Block, namespace: dict[str, object], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = re.match(r"# (\S+\.(?:py|yaml))\n", block.text)
    if name:
        Path(name[1]).write_text(block.text, encoding="utf-8")
    elif block.kind == "text":
        expect(f"{block}: the block above", block.text, capfd.readouterr().out)
    elif block.kind == "python":
        exec(compile("\n" * block.line + block.text, block.page, "exec"), namespace)
    elif block.kind == "console":
        code = 0
        for line, expected in commands(block.text):
            capfd.readouterr()
            code = command(line, code, monkeypatch)
            out, err = capfd.readouterr()
            expect(f"{block}: {line}", expected or "...", err + out)
            assert expected or not code, f"{block}: {line}\nended with {code}\n{err}{out}"
    else:
        pytest.fail(f"{block}: a block of {block.kind} neither runs nor is a file")


def commands(text: str) -> Iterator[tuple[str, str]]:
    """(command, what it is said to show)."""
    for each in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        line, _, shown = re.sub(r"\\\n\s*", "", each).partition("\n")
        yield line, shown


def command(line: str, last: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run it, ours in this process; its exit code."""
    if line == "echo $?":
        print(last)
        return 0
    if exported := re.fullmatch(r"export (\w+)=(\S+)", line):
        monkeypatch.setenv(exported[1], os.path.expandvars(exported[2]))
        return 0
    first, *args = shlex.split(os.path.expandvars(line))
    if first == "secateur":
        return run(app, args)
    return subprocess.run(line, shell=True).returncode


def expect(what: str, expected: str, found: str) -> None:
    if not shows(expected, found):
        pytest.fail(f"{what}\nis said to show\n{expected}\nand shows\n{found}", pytrace=False)


def shows(expected: str, found: str) -> bool:
    def plain(text: str) -> str:
        text = re.sub(r" (better|unchanged|worse, tolerated|worse(?!,))(?=\s|$)", "", text)
        return re.sub(r"[+−-]?\d[\d.,]*", "0", text.replace("\N{NO-BREAK SPACE}", " "))

    return SAME.check_output(plain(expected), plain(found), FLAGS)


def test_figures_may_differ_and_words_may_not() -> None:
    assert shows("depth ↓  0.062  −0.60 %  better\n...\n", "depth ↓   0.07  +2 %  better\nmore\n")
    assert shows("left ↑  0.959  −0.20 %  worse\n", "left ↑  0.959  +0.10 %  better\n")
    assert not shows("depth ↓  0.062  −0.60 %  better\n", "depth ↓  0.062  −0.60 %  worse, not tolerated\n")


SKIPPED = [block for page in PAGES for block in blocks(page) if block.skipped]


@pytest.mark.parametrize("block", SKIPPED, ids=str)
def test_a_block_that_is_not_run(block: Block) -> None:
    pytest.skip(f"{block.skipped}")
