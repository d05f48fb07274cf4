"""What stands at a path is always whole: the old file or folder, or the new one, never half of either."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from secateur.core.errors import OutputError
from secateur.core.files import canonical_json, sha256, write_json, writing, writing_folder


@contextmanager
def full_disk(left: int = 64) -> Iterator[None]:
    """The operating system really refuses to write more than `left` bytes to a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_place_at_the_end_of_the_block(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    with writing(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert contents(tmp_path) == {"deep/file.txt": "new"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_in_the_block_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def interrupted() -> None:
        with writing(path) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(error):
        interrupted()
    assert contents(tmp_path) == {"file.txt": "old"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_in_the_block_leaves_the_old_folder(tmp_path: Path, error: type[BaseException]) -> None:
    with writing_folder(tmp_path / "run") as folder:
        (folder / "a").write_text("old")

    def interrupted() -> None:
        with writing_folder(tmp_path / "run") as folder:
            (folder / "b").write_text("new")
            raise error

    with pytest.raises(error):
        interrupted()
    assert contents(tmp_path) == {"run/a": "old"}
    assert names(tmp_path) == ["run"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with writing_folder(tmp_path / "run") as folder:
            (folder / name).write_text(name)
    assert contents(tmp_path) == {"run/b": "b"}
    assert names(tmp_path) == ["run"]


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writing_folder(tmp_path / "run") as folder:
        (folder / "a").write_text("old")
    rename = Path.rename

    def refuse_the_new(self: Path, target: Path) -> Path:
        if self.name.startswith(".run.") and not self.name.endswith("previous"):
            raise PermissionError(13, "refused", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_the_new)
    with pytest.raises(OutputError, match="not allowed"), writing_folder(tmp_path / "run") as folder:
        (folder / "b").write_text("new")
    assert contents(tmp_path) == {"run/a": "old"}


def test_many_writers_of_one_folder_leave_one_whole(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for _ in range(20):
            with writing_folder(tmp_path / "run") as folder:
                (folder / "a").write_text(str(number))
                (folder / "b").write_text(str(number))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert names(tmp_path) == ["run"]
    assert len(set(contents(tmp_path).values())) == 1
    assert len(contents(tmp_path)) == 2


def test_no_space_is_one_clear_line_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"old": 1})
    with full_disk(), pytest.raises(OutputError, match="no space left to write") as caught:
        write_json(path, {"new": "x" * 1000})
    assert "nothing was changed" in caught.value.hint
    assert contents(tmp_path) == {"file.json": canonical_json({"old": 1})}


def test_no_space_in_a_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    with full_disk(), pytest.raises(OutputError, match="no space left"), writing_folder(tmp_path / "run") as folder:
        (folder / "a").write_bytes(bytes(1000))
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_the_device_is_full(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no space left"), writing(tmp_path / "file"):
        Path("/dev/full").write_bytes(b"x")
    assert names(tmp_path) == []


def test_a_folder_in_the_way_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        write_json(tmp_path / "taken", {})
    assert names(tmp_path) == ["taken"]


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(OutputError, match="cannot write"), writing_folder(tmp_path / "taken" / "run"):
        pass
    assert contents(tmp_path) == {"taken": "mine"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(OutputError, match="not allowed"):
        write_json(tmp_path / "file.json", {})


def test_a_refusal_of_the_system_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(OutputError, match="not allowed to write") as caught:
        write_json(tmp_path / "file.json", {})
    assert "-o" in caught.value.hint


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write_json(tmp_path / ("x" * 300), {})


def test_files_are_as_readable_as_the_user_wants_them(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "file.json", {})
        with writing_folder(tmp_path / "run"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "file.json").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o750


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"x": 1, "ü": [1.5]})
    write_json(tmp_path / "b", {"ü": [1.5], "x": 1})
    assert sha256(tmp_path / "a") == sha256(tmp_path / "b")
    assert json.loads((tmp_path / "a").read_text(encoding="utf-8")) == {"x": 1, "ü": [1.5]}
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"x": float("nan")})
