"""Whoever stops a run loses nothing: SIGINT and SIGTERM end it in one line, kill -9 without one, and --resume ends in
the same weights as a run that nobody stopped."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path

from shell import QUICK, Secateur

COMMAND = ("compress", "toys:pair", "--budget", "flops<=60%", *QUICK, "-o", "out")


def test_ctrl_c_says_how_to_continue_to_the_same_weights(
    process: Secateur, secateur: Secateur, finished: Path, folder: Path
) -> None:
    while_pruning = process(*COMMAND, TOYS_SIGNAL="SIGINT", TOYS_STOP_AFTER="8")
    assert while_pruning.code == 130
    assert while_pruning.err.splitlines()[-2:] == [
        "stopped; nothing was lost",
        "hint: continue with: secateur compress toys:pair --budget 'flops<=60%' --rounds 2 --epochs 2 --drop 90% "
        "-o out --resume",
    ]
    assert names(folder) == ["out.state"]
    assert secateur(*COMMAND, "--resume").code == 0
    assert names(folder) == ["out"]
    assert weights(folder / "out") == weights(finished)


def test_terminated_while_fine_tuning(process: Secateur, secateur: Secateur, finished: Path, folder: Path) -> None:
    stopped = process(*COMMAND, "--json", TOYS_SIGNAL="SIGTERM", TOYS_ONLY="training", TOYS_STOP_AFTER="5")
    assert stopped.code == 130
    assert stopped.document["error"]["kind"] == "stopped"
    assert stopped.document["error"]["hint"].endswith("--resume")
    assert any("finetune" in name for name in names(folder / "out.state" / "journal"))
    assert secateur(*COMMAND, "--resume").code == 0
    assert weights(folder / "out") == weights(finished)


def test_a_terminal_that_is_closed_stops_it_unless_nohup_was_said(process: Secateur, folder: Path) -> None:
    plain, ignoring = (partial(signal.signal, signal.SIGHUP, each) for each in (signal.SIG_DFL, signal.SIG_IGN))
    stopped = process(*COMMAND, before=plain, TOYS_SIGNAL="SIGHUP", TOYS_STOP_AFTER="8")
    assert (stopped.code, names(folder)) == (130, ["out.state"])
    assert process(*COMMAND, "--force", before=ignoring, TOYS_SIGNAL="SIGHUP", TOYS_STOP_AFTER="8").code == 0


def test_killed_and_resumed_but_not_as_another_run(
    process: Secateur, secateur: Secateur, finished: Path, folder: Path
) -> None:
    assert process(*COMMAND, TOYS_SIGNAL="SIGKILL", TOYS_STOP_AFTER="20").code == -9
    secateur(*COMMAND, "--resume", "--seed", "1").refused(2, "had another seed")
    assert secateur(*COMMAND, "--resume").code == 0
    assert weights(folder / "out") == weights(finished)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def weights(path: Path) -> dict[str, bytes]:
    return {file.parent.name: file.read_bytes() for file in path.rglob("*.safetensors")}
