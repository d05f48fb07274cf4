"""Wrong input: one clear line with a hint, the documented exit code, nothing written and nothing overwritten."""

from __future__ import annotations

import errno
import json
import resource
from importlib.util import find_spec
from pathlib import Path

import pytest
from shell import QUICK, Secateur

from secateur.core.bundle import Bundle
from secateur.core.files import canonical_json

BUDGET = ("--budget", "flops<=60%")
MISTAKES = {
    "misspelt workload": (("scnes", *BUDGET), 'did you mean "scenes"?'),
    "unknown module": (("toyz:pair", *BUDGET), 'no module "toyz"'),
    "unknown function": (("toys:pear", *BUDGET), 'did you mean "pair"?'),
    "function that raises": (("toys:raises", *BUDGET), "FileNotFoundError: no data at ./nyud"),
    "function that exits": (("toys:exits", *BUDGET), "sys.exit(7)"),
    "function that returns nothing": (("toys:nothing", *BUDGET), "returned nothing"),
    "output without a task": (("toys:one_task_missing", *BUDGET), '"normals"'),
    "loader of wrong shapes": (("toys:wrong_shapes", *BUDGET), "calibration loader yields inputs of shape [3, 5, 5]"),
    "NaN in weights": (("toys:nan_weights", *BUDGET), '"depth.weight" of the model holds NaN'),
    "NaN in a loss": (("toys:nan_loss", *BUDGET), 'loss of "depth"'),
    "budget without a unit": (("toys:pair", "--budget", "flops<40"), 'did you mean "flops<=40%"'),
    "budget of an unknown kind": (("toys:pair", "--budget", "speed<=40%"), 'unknown kind of budget "speed"'),
    "no budget": (("toys:pair",), "no budget is given"),
    "latency budget": (
        ("toys:pair", "--budget", "latency<=8ms"),
        ": secateur calibrate cpu; or limit flops",
    ),
    "negative latency": (("toys:pair", "--budget", "latency<=-8ms"), 'cannot read the budget "latency<=-8ms"'),
    "latency on every target": (("toys:pair", "--budget", "latency<=8ms", "--target", "all"), "needs one target"),
    "latency on an unknown target": (("toys:pair", "--budget", "latency<=8ms", "--target", "gpuu"), 'target "gpuu"'),
    "target without an energy": (("toys:pair", "--budget", "energy<=8mJ"), "cpu tells no energy"),
    "drop of an unknown task": (("toys:pair", *BUDGET, "--drop", "deph=3%"), 'no task "deph"'),
    "drop without a unit": (("toys:pair", *BUDGET, "--drop", "3"), 'did you mean "3%"?'),
    "other method": (("toys:pair", *BUDGET, "--method", "shrink"), 'not "shrink"'),
    "experts where there are none": (("toys:pair", "--method", "experts"), "no expert layers found"),
    "front of an extraction": (("toys:pair", "--method", "experts", "--front", "50%"), "no option of an extraction"),
    "setting of another method": (
        ("toys:pair", "--method", "experts", "--set", "saliency=l1"),
        'no setting "saliency"',
    ),
    "rounds of no round": (("toys:pair", "--method", "experts", "--rounds", "0"), "rounds is 0"),
    "widths of pruning": (("toys:pair", *BUDGET, "--widths", "0.5,1"), "only slimmable models"),
    "unknown target": (("toys:pair", *BUDGET, "--target", "gpuu"), 'unknown target "gpuu"'),
    "negative epochs": (("toys:pair", *BUDGET, "--epochs", "-1"), "epochs is -1"),
    "epochs that are no number": (("toys:pair", *BUDGET, "--epochs", "many"), "valid integer"),
    "unknown option": (("toys:pair", "--budgte", "flops<=60%"), "--budget"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(
    mistake: str,
    secateur: Secateur,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path_factory.mktemp("cache")))  # this machine may be calibrated
    args, words = MISTAKES[mistake]
    secateur("compress", *args).refused(2, words)
    assert list(folder.iterdir()) == []


def test_a_target_without_a_latency_is_refused(secateur: Secateur, folder: Path) -> None:
    code, words = (2, "has no latency model") if find_spec("openvino") else (4, "openvino is not installed")
    secateur("compress", "toys:pair", "--budget", "latency<=8ms", "--target", "cpu:openvino").refused(code, words)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("mistake", ["misspelt workload", "unknown option", "function that raises"])
def test_a_mistake_is_a_document_with_json(mistake: str, secateur: Secateur) -> None:
    args, words = MISTAKES[mistake]
    outcome = secateur("compress", *args, "--json")
    assert outcome.code == 2
    assert outcome.err == ""
    assert outcome.document.keys() == {"error"}
    assert outcome.document["error"].keys() == {"kind", "message", "hint"}
    assert words in outcome.document["error"]["message"] + outcome.document["error"]["hint"]


def test_a_folder_that_holds_something_else_is_left_alone(secateur: Secateur, folder: Path) -> None:
    (folder / "thesis").mkdir()
    (folder / "thesis" / "chapter.tex").write_text("years of work")
    secateur("compress", "toys:pair", *BUDGET, "-o", "thesis", "--force").refused(
        2, "holds something that is no bundle"
    )
    assert [path.name for path in folder.rglob("*")] == ["thesis", "chapter.tex"]


def test_a_bundle_where_a_workload_is_wanted_is_told_to_be_one(secateur: Secateur, bundle: Bundle) -> None:
    for args in (("compress", bundle.path, "--method", "experts"), ("sweep", bundle.path, "--study", "s.db")):
        refused = secateur(*args, "--budget", "flops<=60%")
        refused.refused(2, "is a bundle, and this takes a workload", "toys:pair")


def test_a_bundle_is_replaced_only_when_asked(secateur: Secateur, bundle: Bundle) -> None:
    before = contents(bundle.path)
    secateur("compress", "toys:pair", *BUDGET, "-o", bundle.path).refused(2, "already holds a bundle", "--force")
    secateur("select", bundle.path, *BUDGET, "-o", bundle.path).refused(2, "already holds a bundle", "--force")
    assert contents(bundle.path) == before


def test_a_budget_that_cannot_be_met_keeps_the_nearest(secateur: Secateur) -> None:
    outcome = secateur(
        "compress", "toys:pair", "--budget", "flops<=0.1%", "--rounds", "1", "--epochs", "0", "-o", "out", "--json"
    )
    assert outcome.code == 3
    assert outcome.document["budget_met"] is False
    assert outcome.document["error"]["kind"] == "budget_not_met"
    assert "flops<=0.1%: reached" in outcome.document["error"]["message"]
    assert Bundle.open("out").manifest.budget_met is False


def test_select_says_how_near_the_points_come(secateur: Secateur, bundle: Bundle) -> None:
    secateur("select", bundle.path, "--budget", "params<=1%").refused(3, "nearest is point 1: params<=1%: reached")
    secateur("select", bundle.path, "--budget", "latency<=0.01us").refused(3, "latency<=0.01us: reached")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "no budget is given"),
        (("--budget", "flops<=90%", "--prefer", "deph=2"), 'no task "deph"'),
        (("--budget", "flops<=90%", "--prefer", "depth"), "for example: depth=2"),
        (("--budget", "flops<=90%", "--prefer", "depth=0,kind=0"), "weight 0"),
        (("--budget", "latency<=8ms", "--target", "cpu,gpu"), "2 targets"),
    ],
)
def test_select_refuses(options: tuple[str, ...], words: str, secateur: Secateur, bundle: Bundle) -> None:
    secateur("select", bundle.path, *options).refused(2, words)


@pytest.fixture
def board(folder: Path) -> Path:
    """A device that nothing measures or predicts."""
    path = folder / "board.yaml"
    path.write_text("{name: fpga:board, kind: fpga, title: A board, runtime: vitis-ai}")
    return path


def test_a_latency_on_a_target_that_is_not_here(secateur: Secateur, bundle: Bundle, board: Path) -> None:
    secateur("select", bundle.path, "--budget", "latency<=8ms", "--target", board).refused(4, "no latency model")


@pytest.mark.parametrize("command", ["verify", "select", "benchmark", "export", "report", "inspect"])
@pytest.mark.parametrize("damage", ["altered", "truncated", "newer", "no manifest"])
def test_a_damaged_bundle_is_refused(command: str, damage: str, secateur: Secateur, bundle: Bundle) -> None:
    words = spoil(bundle.path, damage)
    options = (*BUDGET, "-o", "out") if command == "select" else ()
    before = contents(bundle.path)
    secateur(command, bundle.path, *options).refused(2, words)
    assert contents(bundle.path) == before
    assert not Path("out").exists()


def spoil(path: Path, damage: str) -> str:
    """Damage a bundle; returns what must be said of it."""
    manifest = path / "manifest.json"
    if damage == "no manifest":
        manifest.unlink()
        return "is no bundle"
    if damage == "newer":
        manifest.write_text(canonical_json(json.loads(manifest.read_text()) | {"schema_version": 99}))
        return "newer Secateur"
    for file in [path / "history.json", *path.rglob("*.safetensors"), *path.rglob("*.onnx")]:
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content if damage == "altered" else content[:-1])
    return "changed or truncated"


def test_a_target_that_is_missing_is_an_entry_and_an_exit_code(secateur: Secateur, bundle: Bundle, board: Path) -> None:
    alone = secateur("benchmark", bundle.path, "--target", board, "--json")
    assert alone.code == 4
    assert [each["source"] for each in alone.document["results"]] == ["unavailable"]
    assert alone.document["error"]["kind"] == "target_unavailable"
    both = secateur("benchmark", bundle.path, "--target", f"cpu,{board}", "--json")
    assert both.code == 0
    assert [each["source"] for each in both.document["results"]] == ["measured", "unavailable"]


@pytest.mark.parametrize(
    ("thing", "words"), [("model.onnx", "does not exist"), ("runs/x", "no bundle"), ("digit", 'mean "digits"')]
)
def test_benchmark_of_nothing(thing: str, words: str, secateur: Secateur) -> None:
    secateur("benchmark", thing).refused(2, words)


def test_a_stopped_run_is_neither_overwritten_nor_resumed_unasked(secateur: Secateur, folder: Path) -> None:
    (folder / "out.state" / "journal").mkdir(parents=True)
    secateur("compress", "toys:pair", *BUDGET, "-o", "out").refused(2, "a run that was stopped", "--resume")
    assert (folder / "out.state" / "journal").is_dir()


def test_a_full_disk_is_one_line_and_leaves_no_bundle(process: Secateur, folder: Path) -> None:
    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    outcome = process("compress", "toys:pair", *BUDGET, *QUICK, "-o", "out", before=small_files_only)
    outcome.refused(2, "no space left to write out.state")
    assert not (folder / "out").exists()


def test_a_disk_that_fills_up_at_the_end_loses_nothing(
    secateur: Secateur, folder: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("compress", "toys:pair", *BUDGET, *QUICK, "-o", "out")
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.name == "weights.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        secateur(*command).refused(2, "no space left to write out.state/bundle")
    assert not (folder / "out").exists()
    assert secateur(*command, "--resume").code == 0
    assert weights(folder / "out") == weights(finished)
    assert [path.name for path in folder.iterdir()] == ["out"]


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def weights(path: Path) -> dict[str, bytes]:
    return {file.parent.name: file.read_bytes() for file in path.rglob("*.safetensors")}


def test_the_folder_that_one_is_in_is_not_swapped_away(
    secateur: Secateur, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    inode = bundle.path.stat().st_ino
    monkeypatch.chdir(bundle.path)
    assert secateur("report", ".").code == 0
    assert Path.cwd().stat().st_ino == inode
    assert Bundle.open(bundle.path).verify() == []
    monkeypatch.chdir(bundle.path / "artefacts")
    secateur("report", "..").refused(2, "is above the folder you are in")


def test_files_are_not_exported_into_a_bundle_beside_its_own(secateur: Secateur, bundle: Bundle) -> None:
    for out in (bundle.path, bundle.path / "artefacts"):
        secateur("export", bundle.path, "-o", out).refused(2, "lies in the bundle")
    assert bundle.verify() == []


@pytest.mark.parametrize("command", ["report", "verify", "benchmark", "export"])
def test_a_workload_that_was_typed_must_be_there(command: str, secateur: Secateur, bundle: Bundle) -> None:
    secateur(command, bundle.path, "--workload", "nowhere:model").refused(2, 'no module "nowhere"')


@pytest.mark.parametrize(("option", "value"), [("--layout", "if"), ("--widths", "0.5,1")])
def test_what_only_slimmable_models_have_is_refused(option: str, value: str, secateur: Secateur) -> None:
    secateur("compress", "digits", "--budget", "flops<=50%", option, value).refused(2, option)


def test_a_sweep_without_a_budget_touches_no_study(secateur: Secateur, folder: Path) -> None:
    secateur("sweep", "digits", "--study", "sqlite:///none.db", "-o", "runs").refused(2, "no budget is given")
    assert not (folder / "none.db").exists()


def test_a_farms_output_is_a_file(secateur: Secateur, folder: Path) -> None:
    (folder / "farm.yaml").write_text("devices:\n  - {name: here, key: here, reach: local, runner: /bin/true}\n")
    secateur("farm", "farm.yaml", "digits", "-o", ".").refused(2)
