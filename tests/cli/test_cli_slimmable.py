"""Elastic models from the command line: made, chosen from, written, exported, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from shell import Secateur
from toys import pair

import secateur as sc
from secateur.cli.app import app
from secateur.cli.run import run
from secateur.compress.slimmable import Settings
from secateur.core.budget import Tolerance
from secateur.core.bundle import Bundle
from secateur.core.elastic.files import load_table
from secateur.core.errors import BudgetError, ExportError
from secateur.export.runtime import ElasticSession
from secateur.profiles.report import units
from secateur.verbs.select_elastic import select_elastic, write_selection


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An elastic bundle of the workload `pair`. Not to be changed."""
    path = tmp_path_factory.mktemp("elastic") / "pair"
    args = ["compress", "toys:pair", "--method", "slimmable", "--widths", "0.5,1", "--epochs", "1", "-o", str(path)]
    assert run(app, args) == 0
    return path


def test_the_bundle_is_whole_and_holds_table_files_and_report(made: Path) -> None:
    bundle = Bundle.open(made)
    assert bundle.verify() == []
    assert bundle.manifest.method == "slimmable"
    assert not made.with_name("pair.state").exists()
    table = load_table(made / "elastic.json")
    assert table.tasks == ("depth", "kind")
    assert table.latency["cpu"].source == "measured"
    assert 'id="wb0"' in (made / "report.html").read_text()
    session = ElasticSession(made / "elastic")
    found = session.run(np.zeros((1, 3, 8, 8), dtype=np.float32))
    assert found["depth"].shape == (1, 1, 8, 8)
    assert session.controller.table.latency["cpu"].original_ms == table.latency["cpu"].original_ms


def test_select_answers_with_widths(made: Path, secateur: Secateur) -> None:
    done = secateur("select", made, "--budget", "flops<=60%", "--prefer", "depth=2", "--json")
    assert done.code == 0, done.err
    document = done.document
    assert document["budget_met"] is True
    assert document["widths"] == {"encoder1": 0.5}
    assert set(document["expected"]["metrics"]) == {"depth", "kind"}
    assert document["expected"]["flops"] <= 0.6 * load_table(made / "elastic.json").original.flops
    assert document["expected"]["latency_ms"] > 0
    assert (document["misses"], document["written"]) == ([], None)
    assert document["sources"]["latency"] == "measured"
    assert "encoder1" in secateur("select", made, "--budget", "latency<=1s").out


def test_an_elastic_model_in_memory_is_written_from_its_bundle(folder: Path) -> None:
    elastic = sc.slim(pair(), settings=Settings(widths=(0.5, 1.0), epochs=0))
    assert sc.select(elastic, "flops<=60%").met
    with pytest.raises(BudgetError, match="from its bundle"):
        sc.select(elastic, "flops<=60%", output=folder / "small")
    assert not (folder / "small").exists()


def test_another_target_is_predicted_and_said_to_be(made: Path, secateur: Secateur) -> None:
    for budget, kind in (("latency<=60%", "latency_ms"), ("energy<=60%", "energy_mj")):
        done = secateur("select", made, "--target", "fpga:zcu102", "--budget", budget, "--json")
        assert done.code in (0, 3), done.err
        assert done.document["expected"][kind] > 0
        assert done.document["target"] == "fpga:zcu102"
        assert done.document["expected"]["predicted"] is (kind == "latency_ms")
    assert secateur("select", made, "--budget", "flops<=60%", "--json").document["expected"]["predicted"] is False
    shown = secateur("select", made, "--target", "fpga:zcu102", "--budget", "latency<=1s").out
    assert "latency on fpga:zcu102, predicted" in shown
    assert "measured" not in shown


def test_a_target_of_ones_own_file(made: Path, folder: Path, secateur: Secateur) -> None:
    (folder / "mine.yaml").write_text(
        "name: my-npu\nkind: fpga\ntitle: mine\nruntime: onnxruntime\n"
        "compute: {value: 1 GFLOP/s, source: guess}\nbandwidth: {value: 1 GB/s, source: guess}\n"
        "energy_per_mac: {value: 1 nJ, source: guess}\nenergy_per_byte: {value: 1 pJ, source: guess}\n"
        "latency: {model: roofline, use: 1.0, operator: 1 us}\n"
    )
    done = secateur("select", made, "--target", "mine.yaml", "--budget", "energy<=1J,latency<=1s", "--json")
    assert done.code == 0, done.err
    assert done.document["target"] == "my-npu"
    macs = done.document["expected"]["flops"] / 2
    assert done.document["expected"]["energy_mj"] == pytest.approx(1e3 * macs * 1e-9, rel=0.1)  # traffic adds little


def test_targets_of_a_run_are_measured_or_predicted(folder: Path, secateur: Secateur) -> None:
    """The elastic files run here and nowhere else: what is not this machine is never measured in its name."""
    options = ("--method", "slimmable", "--widths", "0.5,1", "--epochs", "0", "-o", "both")
    done = secateur("compress", "toys:pair", *options, "--target", "cpu,mobile:raspberry-pi-5")
    assert done.code == 0, done.err
    table = load_table(folder / "both" / "elastic.json")
    assert {name: each.source for name, each in table.latency.items()} == {
        "cpu": "measured", "mobile:raspberry-pi-5": "predicted"
    }  # fmt: skip
    assert list(table.energy) == ["mobile:raspberry-pi-5"]
    session = ElasticSession(folder / "both" / "elastic", target="mobile:raspberry-pi-5")
    energy = session.controller.pick().costs["energy"]
    assert not session.controller.pick(budget_mj=0.01 * energy).met


def test_a_budget_below_the_smallest_offers_it_and_exits_with_3(made: Path, secateur: Secateur) -> None:
    done = secateur("select", made, "--budget", "flops<=1%", "--json")
    assert done.code == 3
    assert done.document["budget_met"] is False
    assert done.document["widths"] == {"encoder1": 0.5}
    assert done.document["error"]["kind"] == "budget_not_met"
    assert "the nearest give flops<=1%:" in done.document["error"]["message"]


def test_one_task_alone_costs_less(made: Path, secateur: Secateur) -> None:
    both, one = (
        secateur("select", made, "--budget", "flops<=60%", *more, "--json").document["expected"]["flops"]
        for more in ((), ("--tasks", "kind"))
    )
    assert one < both


def test_the_choice_becomes_a_static_bundle(made: Path, folder: Path, secateur: Secateur) -> None:
    done = secateur("select", made, "--budget", "flops<=60%", "-o", "small", "--json")
    assert done.code == 0, done.err
    bundle = Bundle.open(folder / "small")
    manifest = bundle.manifest
    assert done.document["bundle"] == "small"
    assert manifest.point.costs.flops == done.document["expected"]["flops"] < manifest.before.flops
    assert manifest.point.costs.params == done.document["expected"]["params"]
    assert manifest.budget_met
    assert done.document["written"] == manifest.point.model_dump()
    assert [artefact.format for artefact in manifest.artefacts] == ["onnx"]
    again = secateur("select", "small", "--budget", "flops<=60%", "--objective", "paper")
    again.refused(2, "small is static; choose among its 1 point")


def test_tasks_that_are_left_out_are_not_in_the_static_bundle(made: Path, folder: Path, secateur: Secateur) -> None:
    done = secateur("select", made, "--budget", "flops<=60%", "--tasks", "kind", "-o", "one", "--json")
    assert done.code == 0, done.err
    manifest = Bundle.open(folder / "one").manifest
    assert [task.name for task in manifest.tasks] == ["kind"]
    assert list(manifest.point.metrics) == ["kind"]
    assert manifest.point.costs.flops == done.document["expected"]["flops"]
    assert manifest.point.costs.params == done.document["expected"]["params"]
    assert secateur("verify", "one").code == 0


def test_a_floor_that_the_test_split_does_not_keep_is_told_and_exits_with_3(made: Path, folder: Path) -> None:
    bundle = Bundle.open(made)
    chosen = select_elastic(bundle, "flops<=60%", floors=Tolerance.parse("depth=99%", math.inf))
    assert chosen.met
    written = write_selection(replace(chosen, floors={"depth": -2.0}), folder / "small")
    assert not written.met
    assert written.error is not None
    assert written.error.exit_code == 3
    assert written.as_json()["misses"] == list(written.misses)
    assert "depth:" in written.error.message
    assert "where a drop of -200% is allowed" in written.error.message
    assert Bundle.open(folder / "small").manifest.budget_met is False


@pytest.mark.parametrize("original", [0.0, -0.5])
def test_floors_of_metrics_that_are_zero_or_negative_are_told(made: Path, original: float) -> None:
    chosen = select_elastic(Bundle.open(made), "flops<=60%", floors=Tolerance.parse("depth=99%", math.inf))
    table = chosen.table
    metrics = dict(table.original.metrics) | {"depth": original}
    table = replace(table, original=replace(table.original, metrics=metrics))
    refused = replace(chosen, table=table, choice=replace(chosen.choice, met=False))
    assert refused.error is not None
    assert "depth: -" in refused.error.message
    assert "where a drop of 99% is allowed" in refused.error.message


def test_a_choice_is_fine_tuned_by_itself(made: Path, folder: Path, secateur: Secateur) -> None:
    for name, more in (("plain", ()), ("tuned", ("--epochs", "2"))):
        assert secateur("select", made, "--budget", "flops<=60%", "-o", name, *more).code == 0
    plain, tuned = (Bundle.open(folder / name) for name in ("plain", "tuned"))
    assert tuned.manifest.point.costs == plain.manifest.point.costs
    assert tuned.manifest.point.metrics != plain.manifest.point.metrics
    curve = json.loads(tuned.file("history.json").read_text())["fine_tuning"]
    assert [each["epoch"] for each in curve] == [0, 1]
    secateur("select", made, "--budget", "flops<=60%", "--epochs", "2").refused(2, "must be written")


def test_a_pruned_model_is_made_elastic(finished: Path, folder: Path, secateur: Secateur) -> None:
    """Figures refer to the original; the pruned model is the full width; every static choice is cut from the user's
    own class in one step."""
    options = ("--method", "slimmable", "--widths", "0.5,1", "--epochs", "0", "--set", "round_to=2")
    done = secateur("compress", finished, *options, "-o", "both")
    assert done.code == 0, done.err
    pruned, both = Bundle.open(finished).manifest, Bundle.open(folder / "both")
    assert both.manifest.point.costs == pruned.points[pruned.chosen].costs
    assert both.manifest.before == pruned.before
    assert f"to {units.flops(pruned.point.costs.flops)}; the table" in done.out
    assert both.manifest.metrics_before == pytest.approx(pruned.metrics_before)
    table = load_table(folder / "both" / "elastic.json")
    assert table.original.flops == pruned.before.flops > table.costs["flops"].of(*table.full)
    done = secateur("select", "both", "--budget", "flops<=35%", "-o", "small", "--json")
    assert done.code == 0, done.err
    assert Bundle.open(folder / "small").manifest.point.costs.flops == done.document["expected"]["flops"]
    for name in ("both", "small"):
        assert secateur("verify", name).code == 0
    assert secateur("export", "both", "--to", "elastic", "-o", "device").code == 0
    again = secateur("compress", "small", *options, "-o", "third")
    assert again.code == 0, again.err


def test_settings_by_name(folder: Path, secateur: Secateur) -> None:
    options = ("--method", "slimmable", "--widths", "0.5,1", "--epochs", "0", "-o", "own")
    assert secateur("compress", "toys:pair", *options, "--set", "per_group=true", "--set", "order=taylor").code == 0
    assert Bundle.open(folder / "own").manifest.settings["order"] == "taylor"
    assert [stage.name for stage in load_table(folder / "own" / "elastic.json").stages] == ["trunk.0", "trunk.3"]
    for given, words in (("per_grup=true", 'no setting "per_grup"'), ("round_to=wide", "does not fit")):
        done = secateur("compress", "toys:pair", *options, "--set", given, "--force")
        assert done.code == 2
        assert words in done.err


def test_elastic_files_can_be_written_elsewhere(made: Path, folder: Path, secateur: Secateur) -> None:
    done = secateur("export", made, "--to", "elastic", "-o", "device", "--json")
    assert done.code == 0, done.err
    assert done.document["artefacts"][0]["parity"]["max_abs"] < 1e-4
    assert ElasticSession(folder / "device").tasks == ("depth", "kind")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--budget", "flops<=60%", "--prefer", "dept=2"), 'no task "dept"'),
        (("--budget", "flops<=60%", "--prefer", "depth=-1"), 'the weight of "depth" is -1'),
        (("--budget", "flops<=60%", "--tasks", "edges"), 'no task "edges"'),
        (("--budget", "flops<=60%", "--target", "fpga:zcu1"), 'unknown target "fpga:zcu1"'),
        (("--budget", "latency<=8ms", "--target", "fpga:edge-moe"), "predicted from the routing of a whole workload"),
        (("--budget", "energy<=8mJ"), "cpu tells no energy"),
        (("--budget", "flops<=60%", "--objective", "best"), "unknown objective"),
    ],
)
def test_what_makes_no_sense_is_refused(made: Path, secateur: Secateur, args: tuple[str, ...], words: str) -> None:
    secateur("select", made, *args).refused(2, words)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--widths", "0.5,two"), 'cannot read "0.5,two"'),
        (("--widths", "1"), "there is one width only"),
        (("--widths", "0,1"), "a width is 0"),
        (("--budget", "flops<=40%"), "serves every budget"),
        (("--tasks", "depth"), "serves every budget"),
        (("--layout", "zip", "--epochs", "0", "--widths", "0.5"), "unknown elastic layout"),
    ],
)
def test_a_run_that_makes_no_sense_is_refused(secateur: Secateur, args: tuple[str, ...], words: str) -> None:
    done = secateur("compress", "toys:pair", "--method", "slimmable", *args)
    assert done.code == 2
    assert words in done.err


def test_a_static_bundle_is_named_as_such(finished: Path, secateur: Secateur) -> None:
    secateur("select", finished, "--budget", "flops<=60%", "--tasks", "depth").refused(2, "is static", "points")
    secateur("export", finished, "--to", "elastic", "-o", "x").refused(2, "is static")


def test_a_changed_table_is_refused(made: Path, folder: Path, secateur: Secateur) -> None:
    copied = shutil.copytree(made, folder / "copy")
    (copied / "elastic.json").write_text((copied / "elastic.json").read_text() + " ")
    secateur("select", copied, "--budget", "flops<=60%").refused(2, "elastic.json was changed or truncated")


def test_a_drop_for_all_tasks_is_a_floor_for_each_that_runs(made: Path, secateur: Secateur) -> None:
    """None is 99 % better than the original."""
    small = secateur("select", made, "--budget", "flops<=60%", "--drop", "0%", "--json")
    table = load_table(made / "elastic.json")
    worse = [
        task for task, value in small.document["expected"]["metrics"].items()
        if value > table.original.metrics[task] * (1 + 1e-9)
    ]  # fmt: skip
    assert (small.code, small.document["budget_met"]) == ((3, False) if worse else (0, True))
    named = secateur("select", made, "--budget", "flops<=60%", "--drop", "depth=99%", "--json")
    assert named.code == 0


def test_elastic_files_replace_elastic_files_only(made: Path, secateur: Secateur, folder: Path) -> None:
    (folder / "deploy").mkdir()
    (folder / "deploy" / "other.onnx").write_text("mine")
    for force in ([], ["--force"]):
        refused = secateur("export", made, "--to", "elastic", "-o", "deploy", *force)
        refused.refused(2, "deploy holds other things than elastic files")
    assert (folder / "deploy" / "other.onnx").read_text() == "mine"
    assert secateur("export", made, "--to", "elastic", "-o", "own").code == 0
    secateur("export", made, "--to", "elastic", "-o", "own").refused(2, "own holds elastic files")
    assert secateur("export", made, "--to", "elastic", "-o", "own", "--force").code == 0
    refused = secateur("export", made, "--to", "elastic", "--precision", "fp16", "-o", "half")
    refused.refused(2, "elastic files know no options")


def test_a_selection_that_cannot_be_written_leaves_nothing(
    made: Path, secateur: Secateur, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object, **options: object) -> None:
        raise ExportError("ONNX has no such operator", "leave it out")

    with monkeypatch.context() as patched:
        patched.setattr("secateur.verbs.complete.complete", fails)
        secateur("select", made, "--budget", "flops<=60%", "-o", "small").refused(2, "ONNX has no such operator")
    assert list(folder.iterdir()) == []
    assert secateur("select", made, "--budget", "flops<=60%", "-o", "small").code == 0
