"""run_on over adb, ssh and on this machine: the same networks, programs that stand in for adb and ssh, real figures."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_models import OddChannels, TwoInputs, make_workload
from pydantic import ValidationError

from secateur.core.errors import DeviceError, DeviceLostError, ExportError, OutputError, TargetUnavailableError
from secateur.export.runtime import predictor
from secateur.targets.farm.device_run import Inputs, cool, parse, run_on
from secateur.targets.farm.file import Farm, FarmDevice, ReachEntry, read_farm
from secateur.targets.farm.journal import Journal
from secateur.targets.farm.lease import Leases
from secateur.targets.farm.reach import Adb, Local, Reach, Ssh

pytest.importorskip("ncnn", reason="ncnn is not installed (the extra [mobile])")
pytest.importorskip("pnnx", reason="pnnx is not installed (the extra [mobile])")

from secateur.export.ncnn import to_ncnn
from secateur.export.ncnn_session import NcnnModel, Signature

FAKE_SSH = """#!/bin/sh
# ssh as far as it is used here: options until --, a host, a script for its shell
while [ "$1" != "--" ]; do shift; done
shift
[ "$1" = "pi@board" ] || { echo "ssh: Could not resolve hostname $1" >&2; exit 255; }
exec sh -c "$2"
"""
FAKE_ADB = """#!/bin/sh
[ "$1" = "-s" ] || exit 1
[ "$2" = "PHONE1" ] || { echo "adb: device '$2' not found" >&2; exit 1; }
shift 2
case "$1" in
  exec-out) exec sh -c "$2" < /dev/null ;;
  shell) [ "$2" = "-T" ] || exit 1; exec sh -c "$3" ;;
esac
exit 1
"""


def program(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("networks")
    models = {"odd": OddChannels().eval(), "two": TwoInputs().eval()}
    return {name: to_ncnn(each, make_workload(each), folder / f"{name}.param") for name, each in models.items()}


@pytest.fixture
def device(tmp_path: Path) -> FarmDevice:
    fake = Path(__file__).with_name("fake_runner.py")
    runner = program(tmp_path / "runner", f'#!/bin/sh\nexec {sys.executable} {fake} "$@"\n')
    return FarmDevice(
        name="phone", key="phone", reach=ReachEntry(local=True), runner=runner, folder=str(tmp_path / "on device")
    )


@pytest.fixture(params=["adb", "ssh", "local"])
def reach(request: pytest.FixtureRequest, tmp_path: Path) -> Reach:
    if request.param == "adb":
        return Adb("PHONE1", program(tmp_path / "adb", FAKE_ADB))
    if request.param == "ssh":
        return Ssh("pi@board", ("-p", "2222"), program(tmp_path / "ssh", FAKE_SSH))
    return Local()


def noise(networks: dict[str, Path]) -> dict[str, Inputs]:
    return {name: Inputs.noise(Signature.read(path)) for name, path in networks.items()}


def test_a_device_computes_and_is_timed(reach: Reach, device: FarmDevice, networks: dict[str, Path]) -> None:
    inputs = noise(networks)
    run = run_on(device, reach, networks, inputs)
    assert {name: len(times) for name, times in run.samples.items()} == {"odd": 10, "two": 10}
    assert run.said.clock_khz == {"before": 1800000}
    assert run.said.temperature_c == {"before": 41.5}
    for name, path in networks.items():
        wanted = NcnnModel(path).run(inputs[name].values)
        assert list(run.outputs[name]) == list(wanted)
        for task, value in wanted.items():
            np.testing.assert_allclose(run.outputs[name][task], value, atol=1e-6)
    left = [path.name for path in Path(device.folder).iterdir()]
    assert len(left) == 1, "only the runner stays, for the next time"
    assert left[0].startswith("secateur-ncnn-")


def test_bytes_arrive_as_they_are(reach: Reach, tmp_path: Path) -> None:
    content = bytes(range(256)) * 300 + b"\r\n\x00secateur-exit 0\n"
    (tmp_path / "here").write_bytes(content)
    reach.push(tmp_path / "here", str(tmp_path / "it's there"))
    assert reach.pull(str(tmp_path / "it's there")) == content


def test_a_command_that_fails_is_not_a_lost_device(reach: Reach) -> None:
    with pytest.raises(ExportError, match="no luck"):
        reach.run(["sh", "-c", "echo no luck >&2; exit 3"])
    with pytest.raises(ExportError, match="exit code 3"):
        reach.run(["sh", "-c", "exit 3"])


def test_a_connection_that_is_cut_is_a_lost_device(reach: Reach) -> None:
    with pytest.raises(DeviceLostError, match="is lost"):
        reach.run_script("echo half; kill -9 $$")
    with pytest.raises(DeviceLostError, match="no answer"):
        reach.run(["sleep", "30"], timeout_s=0.3)


def test_an_unknown_device_says_what_its_program_says(tmp_path: Path) -> None:
    with pytest.raises(DeviceLostError, match="'PHONE2' not found"):
        Adb("PHONE2", program(tmp_path / "adb", FAKE_ADB)).run(["true"])
    with pytest.raises(DeviceLostError, match="Could not resolve"):
        Ssh("pi@moon", (), program(tmp_path / "ssh", FAKE_SSH)).run(["true"])
    with pytest.raises(TargetUnavailableError, match="no-adb is not installed"):
        Adb("PHONE1", "no-adb").run(["true"])


@pytest.mark.parametrize("damage", ["head -c 40", "sed s/done/don/", "sed s/sample/output/", "sed /sample/d"])
def test_half_a_report_is_a_lost_device(
    damage: str, device: FarmDevice, networks: dict[str, Path], tmp_path: Path
) -> None:
    broken = program(tmp_path / "broken", f'#!/bin/sh\n{device.runner} "$@" | {damage}\n')
    with pytest.raises(DeviceLostError):
        run_on(device.model_copy(update={"runner": broken}), Local(), networks, noise(networks))
    assert not [path for path in Path(device.folder).iterdir() if path.name.startswith("run-")]


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="without /proc nobody is found")
def test_what_a_killed_run_left_on_the_device_is_ended_first(
    reach: Reach, device: FarmDevice, networks: dict[str, Path], tmp_path: Path
) -> None:
    """kill -9 ends the process here, not the runner there: it would run beside the next one, whose lease is sound."""
    telling = program(tmp_path / "telling", f'#!/bin/sh\npwd > "{tmp_path}/place"\nexec {device.runner} "$@"\n')
    run_on(device.model_copy(update={"runner": telling}), reach, networks, noise(networks))
    place = Path((tmp_path / "place").read_text().strip())
    place.mkdir()
    with subprocess.Popen(["sleep", "60"], cwd=place) as left:
        assert run_on(device.model_copy(update={"name": "other"}), reach, networks, noise(networks)).samples
        assert left.poll() is None, "who works for another device goes on"
        busy = f"grep -q sleep /proc/{left.pid}/cmdline && exit 1"
        alone = program(tmp_path / "alone", f'#!/bin/sh\n{busy}\nexec {device.runner} "$@"\n')
        assert run_on(device.model_copy(update={"runner": alone}), reach, networks, noise(networks)).samples
        assert left.wait(timeout=10) == -signal.SIGKILL
    assert not place.exists()


@pytest.mark.parametrize("line", ["sample m0 -1", "sample m0 inf", "sample m0", "output m0 depth 3x", "done many"])
def test_a_damaged_line_is_named(line: str) -> None:
    with pytest.raises(DeviceLostError, match="damaged"):
        parse(f"ncnn 1.0\n{line}\n")


def test_a_report_is_complete_only_with_all_its_samples() -> None:
    assert parse("sample m0 1.5\nsample m1 2\nnews from later\ndone 2\n").complete
    assert not parse("sample m0 1.5\ndone 2\n").complete
    assert not parse("sample m0 1.5\n").complete
    assert parse("temperature_mc before 42\n").temperature_c == {"before": 42.0}


def test_a_hot_device_is_given_time(device: FarmDevice) -> None:
    heat, naps = iter(["61000 30000", "52000 30000", "44000 29000"]), []

    class Hot(Local):
        def run_script(self, script: str, timeout_s: float = 1, given: bytes | None = None) -> str:
            return next(heat)

    warm = device.model_copy(update={"cool_down_s": 7.0, "cool_below_c": 45.0})
    cool(warm, Hot(), naps.append)
    assert naps == [7.0, 2.0, 2.0]
    naps.clear()
    cool(warm.model_copy(update={"cool_limit_s": 0.0}), Hot(), naps.append)
    assert naps == [7.0]


GOOD = "devices:\n  - {name: a, key: k, reach: {local: true}, runner: runner}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("devices: []", "devices"),
        (GOOD + "  - {name: a, key: k, reach: {local: true}, runner: runner}", "two devices are called a"),
        (GOOD.replace("local: true", "local: true, ssh: x"), "name one of"),
        (GOOD.replace("local: true", 'ssh: "-oProxyCommand=x"'), "reach.ssh"),
        (GOOD.replace("runner: runner", "runner: runner, threads: 0"), "threads"),
        (GOOD.replace("key: k", "kee: k"), "unknown key"),
        (GOOD.replace("runner: runner", "runner: none"), "no runner"),
        ("devices: [", "not YAML"),
        ("just text", "dictionary"),
    ],
)
def test_a_mistake_in_the_farm_file_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "runner").touch()
    (tmp_path / "farm.yaml").write_text(text)
    with pytest.raises(DeviceError, match=said) as caught:
        read_farm(tmp_path / "farm.yaml")
    assert "\n" not in caught.value.message


def test_a_farm_file(tmp_path: Path) -> None:
    (tmp_path / "runner").touch()
    (tmp_path / "farm.yaml").write_text(GOOD + "  - {name: b, key: k2, reach: {adb: X}, runner: runner, cores: big}\n")
    farm: Farm = read_farm(tmp_path / "farm.yaml")
    assert farm.keys == ["k", "k2"]
    assert farm.devices[0].runner == str(tmp_path / "runner")
    assert farm.devices[1].reach.open() == Adb("X")
    with pytest.raises(DeviceError, match="cannot read"):
        read_farm(tmp_path / "none.yaml")


def test_what_python_predicts_is_what_run_gives(networks: dict[str, Path]) -> None:
    """The reference of the comparison is the torch-facing predictor's own runtime."""
    values = Inputs.noise(Signature.read(networks["odd"])).values
    model = NcnnModel(networks["odd"])
    torch.testing.assert_close(
        predictor(model)(torch.from_numpy(values[0]))["depth"], torch.from_numpy(model.run(values)["depth"])
    )


@pytest.mark.parametrize("folder", ["secateur", "~/secateur", "../secateur"])
def test_a_folder_on_the_device_that_is_not_absolute_is_refused(folder: str) -> None:
    with pytest.raises(ValidationError, match="folder"):
        FarmDevice(name="board", key="board", reach=ReachEntry(local=True), folder=folder)


@pytest.mark.parametrize("kind", [Journal, Leases])
def test_a_journal_that_cannot_be_made_is_one_line(kind: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        kind(tmp_path / "file" / "journal")
