"""The training command, in small: it learns, and writes weights that load with the metrics it says."""

from pathlib import Path

import pytest

from secateur.core.predict import evaluate
from secateur.workloads import checkpoint, digits
from secateur.workloads.train import main


def test_training_writes_weights_with_their_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(digits.SPLITS, "train", (0, 1100, 1500))
    monkeypatch.setitem(digits.SPLITS, "test", (1400, 1797, 128))
    assert main(["digits", "--epochs", "2", "--seed", "1", "--threads", "1", "--output", str(tmp_path)]) == 0
    written = checkpoint.document("digits", tmp_path)
    assert written["seed"] == 1
    assert "--epochs 2 --seed 1" in written["command"]
    assert min(written["metrics"].values()) > 0.3, "better than chance"
    model = checkpoint.load(digits.network(), "digits", tmp_path)
    assert evaluate(model, digits.loader("test"), digits.recipe().tasks) == pytest.approx(written["metrics"])


@pytest.mark.parametrize("arguments", [["unknown"], ["digits", "--epochs", "0"], ["digits", "--epochs", "many"]])
def test_wrong_arguments_stop_with_exit_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
