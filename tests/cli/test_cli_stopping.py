"""Whoever stops a run loses nothing: SIGINT and SIGTERM end it in one line, kill -9 without one, and --resume ends in
the same weights as a run that nobody stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
from shell import QUICK, Secateur

COMMAND = ("compress", "toys:pair", "--budget", "flops<=60%", *QUICK, "-o", "out")


@pytest.mark.parametrize(("signal", "losses"), [("SIGINT", 8), ("SIGTERM", 40), ("SIGKILL", 60)])
def test_a_stopped_run_resumes_to_the_same_weights(
    signal: str, losses: int, process: Secateur, secateur: Secateur, finished: Path, folder: Path
) -> None:
    stopped = process(*COMMAND, TOYS_SIGNAL=signal, TOYS_STOP_AFTER=str(losses))
    if signal == "SIGKILL":
        assert stopped.code == -9
    else:
        assert stopped.code == 130
        assert stopped.err.splitlines()[-2:] == [
            "stopped; nothing was lost",
            "hint: continue with: secateur compress toys:pair --budget 'flops<=60%' --rounds 2 --epochs 2 --drop 90% "
            "-o out --resume",
        ]
    assert sorted(path.name for path in folder.iterdir()) == ["out.state"]
    assert secateur(*COMMAND, "--resume").code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["out"]
    for name in ("00", "01"):
        resumed = folder / "out" / "points" / name / "weights.safetensors"
        assert resumed.read_bytes() == (finished / "points" / name / "weights.safetensors").read_bytes()


def test_json_says_that_it_was_stopped(process: Secateur) -> None:
    stopped = process(*COMMAND, "--json", TOYS_SIGNAL="SIGINT", TOYS_STOP_AFTER="5")
    assert stopped.code == 130
    assert stopped.document["error"]["kind"] == "stopped"
    assert stopped.document["error"]["hint"].endswith("--resume")


def test_another_run_is_not_resumed(process: Secateur, secateur: Secateur, folder: Path) -> None:
    process(*COMMAND, TOYS_SIGNAL="SIGKILL", TOYS_STOP_AFTER="30")
    secateur(*COMMAND, "--resume", "--seed", "1").refused(2, "had another seed")
    assert (folder / "out.state").is_dir()
