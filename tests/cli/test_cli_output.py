"""What the command line prints: tables that fit, documents that parse, and nothing heavy before it is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from shell import QUICK, Secateur

from secateur.core.bundle import Bundle

COSTS = {"flops", "macs", "params", "peak_memory_bytes", "size_bytes"}


@pytest.mark.parametrize("args", [["--help"], ["compress", "--help"], ["targets"], ["compress", "--nonsense"]])
def test_nothing_heavy_is_loaded_before_it_is_needed(args: list[str]) -> None:
    script = (
        "import sys\nfrom secateur.cli.app import app\nfrom secateur.cli.run import run\n"
        f"run(app, {args})\n"
        "print([name for name in ('torch', 'numpy', 'onnx', 'onnxruntime', 'sklearn') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "[]"


def test_help_names_every_verb(secateur: Secateur) -> None:
    for outcome in (secateur("--help"), secateur()):
        assert outcome.code == 0
        for verb in ["compress", "demo", "select", "benchmark", "targets", "inspect", "export", "verify", "report"]:
            assert f"  {verb} " in outcome.out
        assert "..." not in outcome.out.partition("Commands:")[2]


def test_every_verb_explains_itself(secateur: Secateur) -> None:
    for verb in ["compress", "demo", "select", "benchmark", "targets", "inspect", "export", "verify", "report"]:
        outcome = secateur(verb, "--help")
        assert outcome.code == 0
        assert "--json" in outcome.out
        assert "--debug" in outcome.out
        assert "<class" not in outcome.out


def test_compress_prints_one_document_whatever_the_workload_prints(secateur: Secateur) -> None:
    outcome = secateur("compress", "toys:chatty", "--budget", "flops<=60%", *QUICK, "--json")
    assert outcome.code == 0
    document = outcome.document
    assert document["bundle"] == "runs/chatty-pagcp"
    assert document["budget_met"] is True
    assert document["costs"]["before"].keys() == document["costs"]["after"].keys() == COSTS
    assert document["costs"]["after"]["flops"] <= 0.6 * document["costs"]["before"]["flops"]
    assert document["metrics"]["before"].keys() == document["metrics"]["after"].keys() == {"depth", "kind"}
    assert {"forward_flops", "published_loop_forward_flops"} <= document["oracle"].keys()
    assert "the workload's own greeting" in outcome.err


def test_the_table_fits_eighty_columns(secateur: Secateur, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = secateur("select", finished, "--budget", "flops<=60%", "-o", "picked")
    assert shown.code == 0
    assert all(len(line) <= 80 for line in shown.out.splitlines())
    for word in (
        "before",
        "after",
        "depth ↓",
        "kind ↓",
        "FLOPs",
        "latency, cpu",
        "measured",
        "budget met",
    ):
        assert word in shown.out
    assert "\x1b" not in shown.out + shown.err
    assert shown.out.splitlines()[-1].split() == ["report", "picked/report.html"]


def test_an_ascii_terminal_is_enough(process: Secateur, finished: Path) -> None:
    shown = process("select", finished, "--budget", "flops<=60%", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert shown.code == 0, shown.err
    assert "meets flops<=60%" in shown.out


def test_select_document(secateur: Secateur, finished: Path) -> None:
    options = ("--budget", "flops<=60%,latency<=1s", "--prefer", "depth=2")
    document = secateur("select", finished, *options, "--json").document
    assert document.keys() >= {"bundle", "widths", "budget_met", "expected", "target", "search_ms"}
    assert document["expected"].keys() >= {"latency_ms", "flops", "metrics"}
    assert document["widths"].keys() == {"trunk.0", "trunk.3"}


def test_select_writes_a_bundle_of_the_pick(secateur: Secateur, finished: Path) -> None:
    document = secateur("select", finished, "--budget", "flops<=90%", "-o", "picked", "--json").document
    picked = Bundle.open("picked")
    assert picked.verify() == []
    assert document["bundle"] == "picked"
    assert picked.manifest.chosen == document["point"]
    assert picked.manifest.budget == ["flops<=90%"]
    assert secateur("verify", "picked", "--json").document["parity"].keys() == {"artefacts/model.onnx"}


def test_benchmark_documents(secateur: Secateur, finished: Path) -> None:
    document = secateur("benchmark", finished, "--target", "all", "--json").document
    measured, *missing = document["results"]
    assert measured["source"] == "measured"
    assert measured["latency_ms"].keys() == {"median", "p10", "p90"}
    assert measured["flops"] == Bundle.open(finished).manifest.point.costs.flops
    assert measured["speedup_against"] > 0
    assert document["against"]["name"] == "original"
    assert {"predicted", "unavailable"} <= {each["source"] for each in missing}
    assert all(each["reason"] and each["how"] for each in missing if each["source"] == "unavailable")
    for each in missing:
        if each["source"] == "predicted":
            assert each["error_pct"] > 0
            assert each["speedup_against"] > 0
            assert each["latency_ms"]["p10"] < each["latency_ms"]["median"] < each["latency_ms"]["p90"]


def test_any_onnx_file_can_be_measured(secateur: Secateur, folder: Path) -> None:
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, "height", "width"])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Relu", ["images"], ["scores"])], "theirs", [images], [scores])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "theirs.onnx")
    secateur("benchmark", "theirs.onnx").refused(2, "input images has open dimensions", "--shape")
    secateur("benchmark", "theirs.onnx", "--shape", "images").refused(2, "cannot read", "input=1x3x64x64")
    outcome = secateur("benchmark", "theirs.onnx", "--shape", "images=1x3x16x16", "--per-layer", "--json")
    (result,) = outcome.document["results"]
    assert result["latency_ms"]["median"] > 0
    assert [layer["kind"] for layer in result["layers"]] == ["Relu"]


def test_inspect_document(secateur: Secateur) -> None:
    document = secateur("inspect", "toys:pair", "--json").document
    assert [group["name"] for group in document["groups"] if group["prunable"]] == ["trunk.0", "trunk.3"]
    assert document["costs"].keys() == COSTS
    assert document["tasks"].keys() == {"depth", "kind"}
    assert document["dead"] == []


def test_export_writes_beside_but_over_nothing(secateur: Secateur, finished: Path, folder: Path) -> None:
    first = secateur("export", finished, "--to", "onnx", "-o", "out", "--json")
    assert [artefact["path"] for artefact in first.document["artefacts"]] == ["out/model.onnx"]
    secateur("export", finished, "--to", "onnx", "-o", "out").refused(2, "out/model.onnx exists")
    secateur("export", finished, "--to", "abacus", "-o", "new").refused(2, '"abacus"')
    assert [path.name for path in folder.iterdir()] == ["out"]


def test_report_is_written_again_with_pictures(secateur: Secateur, bundle: Bundle) -> None:
    assert secateur("report", bundle.path).code == 0
    page = Bundle.open(bundle.path).checked_file("report.html").read_text()
    assert page.count("data:image/png") >= 4 * (1 + 3 * 2)


def test_debug_shows_where_it_went_wrong(secateur: Secateur) -> None:
    outcome = secateur("compress", "toys:raises", "--budget", "flops<=60%", "--debug")
    assert outcome.code == 2
    assert 'raise FileNotFoundError("no data at ./nyud")' in outcome.err


def test_a_reader_that_goes_away_is_no_error_of_the_workload() -> None:
    command = f"{sys.executable} -m secateur targets | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stderr == ""


def test_a_bundle_is_compressed_further(secateur: Secateur, bundle: Bundle, folder: Path) -> None:
    done = secateur("compress", bundle.path, "--budget", "flops<=40%", *QUICK, "-o", "further", "--json")
    assert done.code == 0, done.err
    before, between, after = (
        figures["flops"]
        for figures in (
            done.document["costs"]["before"],
            bundle.manifest.point.costs.model_dump(),
            done.document["costs"]["after"],
        )
    )
    assert before == bundle.manifest.before.flops
    assert after <= 0.4 * before < between
    assert secateur("verify", "further").code == 0
    assert Bundle.open(folder / "further").manifest.reference == bundle.manifest.reference


def test_select_shows_the_energy_that_it_chose_by(secateur: Secateur, finished: Path) -> None:
    args = ("select", finished, "--target", "mobile:raspberry-pi-5", "--budget", "energy<=1J")
    document = secateur(*args, "--json").document
    assert document["expected"]["energy_mj"] == document["points"][document["point"]]["energy_mj"] > 0
    shown = secateur(*args).out
    assert "energy" in shown.splitlines()[0]
    assert "energy on mobile:raspberry-pi-5, predicted" in shown
    assert "energy" not in secateur("select", finished, "--budget", "flops<=99%").out
