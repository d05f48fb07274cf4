"""What surrounds a command: closed and full streams, terminals of no width, files of others, another process, and
workloads whose code changes what it should not."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest
from shell import QUICK, Secateur

from secateur.core.bundle import Bundle
from secateur.core.errors import OutputError
from secateur.verbs import staging

COMPRESS = ("--budget", "flops<=60%", *QUICK)
NO_SPACE = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")


def shell(command: str) -> subprocess.CompletedProcess[str]:
    script = command.replace("secateur", f"{sys.executable} -m secateur")
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("args", ["verify bundle", "targets --json"])
def test_closed_streams_are_said_to_nobody(args: str, bundle: Bundle) -> None:
    done = shell(f"secateur {args} <&- >&-")
    assert (done.returncode, done.stderr) == (0, "")
    assert shell(f"secateur {args} <&- >&- 2>&-").returncode == 0


@NO_SPACE
@pytest.mark.parametrize("args", ["--help", "targets", "targets --json"])
def test_output_that_finds_no_space_is_one_line(args: str) -> None:
    done = shell(f"secateur {args} > /dev/full")
    assert done.returncode == 2
    assert [line.split(": ")[0] for line in done.stderr.splitlines()] == ["error", "hint"], done.stderr
    assert "no space left" in done.stderr


@pytest.mark.parametrize("columns", ["0", "1"])
def test_a_terminal_of_no_width_gets_a_table(
    columns: str, secateur: Secateur, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    shown = secateur("targets")
    assert "cpu:openvino" in shown.out
    assert len(shown.out.splitlines()) < 100


def test_a_file_that_may_not_be_read_is_not_damaged(
    secateur: Secateur, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root sees it: whoever reads a certain file is refused."""
    for name in ("manifest.json", "points/00/channels.json"):
        with monkeypatch.context() as patch:
            for call in ("read_bytes", "is_file", "open"):
                patch.setattr(Path, call, _refusing(getattr(Path, call), name, spared=call == "is_file"))
            secateur("verify", bundle.path).refused(2, "not allowed to read", f"bundle/{name}")


def _refusing(call: Callable[..., object], name: str, spared: bool) -> Callable[..., object]:
    def refusing(path: Path, *args: object, **named: object) -> object:
        if path.as_posix().endswith(name) and not (spared and name == "manifest.json"):
            raise PermissionError(13, "Permission denied", str(path))
        return call(path, *args, **named)

    return refusing


def test_two_at_once_do_not_make_the_same_output(secateur: Secateur, folder: Path) -> None:
    Path("out.state").mkdir()
    with Path("out.state/lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for verb in (("compress", "toys:pair", *COMPRESS), ("compress", "toys:pair", "--method", "slimmable")):
            for more in ((), ("--resume",), ("--force",)):
                secateur(*verb, "-o", "out", *more).refused(2, "another process is making out", "-o")
    assert secateur("compress", "toys:pair", *COMPRESS, "-o", "out").code == 0, "of one that died nothing is left"
    assert [path.name for path in folder.iterdir()] == ["out"]


def test_a_lock_that_was_removed_while_it_was_awaited_is_no_lock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever held it has ended between the opening and the locking; a third may hold a new one."""
    held = staging.hold

    def late(file: IO[str], busy: Exception) -> None:
        Path(file.name).unlink()
        held(file, busy)

    monkeypatch.setattr(staging, "hold", late)
    with (
        pytest.raises(OutputError, match="another process"),
        staging.reserved(folder / "out", resume=False, force=False),
    ):
        raise AssertionError("two would write")


def test_a_selection_does_not_write_what_another_process_makes(
    secateur: Secateur, finished: Path, folder: Path
) -> None:
    Path("out.state").mkdir()
    with Path("out.state/lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        chosen = ("select", finished, "--budget", "flops<=100%", "-o", "out")
        secateur(*chosen).refused(2, "another process is making out", "-o")
    assert not Path("out").exists()


def test_a_workload_that_closes_stdout_is_told_so(process: Secateur, folder: Path) -> None:
    process("inspect", "toys:closes_stdout").refused(2, "closed sys.stdout", "leave it open")
    made = process("inspect", "toys:closes_stdout", "--json")  # its output goes to stderr then, which it closes
    assert made.code == 2
    assert "closed sys.stdout" in json.loads(made.out)["error"]["message"]


def test_a_thread_of_the_workload_does_not_keep_the_command(process: Secateur, folder: Path) -> None:
    made = process("inspect", "toys:leaves_a_thread")
    assert made.code == 0
    assert "depth" in made.out
    assert 'warning: a thread of the workload\'s code, "prefetch", still runs' in made.err


def test_a_workload_without_a_name_and_a_frozen_model_are_refused(secateur: Secateur, folder: Path) -> None:
    secateur("compress", "toys:nameless", *COMPRESS).refused(2, "without a name")
    secateur("compress", "toys:frozen", *COMPRESS, "-o", "out").refused(2, "every parameter", "frozen", "requires_grad")
    assert list(folder.iterdir()) == []


def test_code_that_changes_folder_and_gradient_mode_is_compressed_all_the_same(process: Secateur, folder: Path) -> None:
    made = process("compress", "toys:of_an_inference_script", *COMPRESS, "-o", "out")
    assert made.code == 0, made.err
    assert Bundle.open(folder / "out").verify() == []


def test_a_bundle_called_original_is_compared_with_its_original(bundle: Bundle, secateur: Secateur) -> None:
    bundle.path.rename("original")
    done = secateur("benchmark", "original", "--json")
    assert done.code == 0, done.err
    (found,), (whole,) = done.document["results"], done.document["against"]["results"]
    assert found["flops"] < whole["flops"]


def test_a_bundle_is_changed_where_it_is_however_it_is_named(
    bundle: Bundle, secateur: Secateur, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From inside of it, and through a link, which stays one."""
    (folder / "link").symlink_to(bundle.path, target_is_directory=True)
    assert secateur("report", "link").code == 0
    assert (folder / "link").is_symlink()
    monkeypatch.chdir(bundle.path)
    assert secateur("report", ".").code == 0
    monkeypatch.chdir(folder)
    assert sorted(each.name for each in folder.iterdir()) == ["bundle", "link"]
    assert secateur("verify", "link").code == 0


def test_a_folder_that_is_called_as_a_built_in_workload_hides_nothing(secateur: Secateur, folder: Path) -> None:
    (folder / "digits").mkdir()
    assert secateur("inspect", "digits").code == 0


def test_a_picture_that_cannot_be_shown_costs_only_itself(secateur: Secateur, folder: Path) -> None:
    done = secateur("compress", "toys:draws_floats", "--budget", "flops<=60%", *QUICK, "-o", "out")
    assert done.code == 0, done.err
    assert "no pictures in the report: render failed: ValueError: a picture is a uint8 array" in " ".join(
        done.err.split()
    )
    assert (folder / "out" / "report.html").is_file()


def test_all_formats_are_written_or_none(bundle: Bundle, secateur: Secateur, folder: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed (the extra [openvino])")
    (folder / "there").mkdir()
    (folder / "there" / "model.xml").touch()
    secateur("export", "bundle", "--to", "onnx,openvino", "-o", "there").refused(2, "model.xml exists")
    assert [each.name for each in (folder / "there").iterdir()] == ["model.xml"]
