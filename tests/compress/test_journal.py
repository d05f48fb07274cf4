"""What a run keeps while it is not finished stands in a folder of its own, and nothing else ever goes with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from secateur.compress.journal import Journal, check_own
from secateur.core.errors import OutputError
from secateur.verbs.staging import check_state, state_folder


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "chapter.tex").write_text("years of work")
    return tmp_path


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_holds_something_else_is_refused_and_stays(mine: Path, resume: bool) -> None:
    with pytest.raises(OutputError, match=r"holds chapter\.tex, which no run left there"):
        Journal(mine, {"seed": 0}, resume=resume)
    assert [path.name for path in mine.iterdir()] == ["chapter.tex"]


@pytest.mark.parametrize("force", [False, True])
def test_so_is_one_that_only_has_the_name_of_a_state_folder(mine: Path, force: bool) -> None:
    output = mine / "out"
    state_folder(output).mkdir()
    (mine / "chapter.tex").rename(state_folder(output) / "chapter.tex")
    with pytest.raises(OutputError, match=r"chapter\.tex"):
        check_state(output, force=force, resume=force)


def test_what_a_killed_run_leaves_is_its_own(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state", {"seed": 0}, resume=False)
    journal.save_tensors("round 1/finetune", {})
    for name in (".journal.json.0a1b2c3d", ".round 1-finetune.pt.0a1b2c3d", "original.onnx", ".original.onnx.0a1b2c3d"):
        (tmp_path / "state" / name).touch()
    (tmp_path / "state" / "bundle").mkdir()
    (tmp_path / "state" / ".bundle.0a1b2c3d").mkdir()
    check_own(tmp_path / "state")
    Journal(tmp_path / "state", {"seed": 0}, resume=False)
    assert not (tmp_path / "state").exists(), "a run that starts anew forgets the old one"
