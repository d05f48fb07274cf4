"""A bundle exists whole or not at all, and every byte of it is accounted for."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secateur.core.bundle import (
    SCHEMA,
    Artefact,
    Bundle,
    CostsEntry,
    Manifest,
    Point,
    TaskEntry,
    changed_bundle,
    new_bundle,
)
from secateur.core.errors import BundleError, OutputError
from secateur.core.files import canonical_json

COSTS = CostsEntry(flops=10, macs=5, params=3, peak_memory_bytes=40, size_bytes=12)
FILES = {
    "points/00/weights.safetensors": bytes(range(256)),
    "points/00/channels.json": b'{"conv": [0, 2]}\n',
    "history.json": b"[]\n",
}


def manifest(**changes: Any) -> Manifest:
    point = Point(
        weights="points/00/weights.safetensors",
        channels="points/00/channels.json",
        costs=COSTS,
        metrics={"depth": 0.1},
        delta_mtl=-0.5,
    )
    plain: dict[str, Any] = {
        "method": "pagcp",
        "workload": "scenes",
        "reference": "scenes",
        "tasks": [TaskEntry(name="depth", better="lower")],
        "budget": ["flops<=40%"],
        "tolerance": "1%",
        "budget_met": True,
        "before": COSTS,
        "metrics_before": {"depth": 0.1},
        "points": [point],
        "chosen": 0,
        "seed": 0,
        "command": "secateur compress scenes",
        "seconds": 1.5,
        "created": "2026-11-23T00:00:00Z",
        "machine": {"cpu": "a", "cores": 2},
        "versions": {"torch": "2.13.0"},
    }
    return Manifest(**{**plain, **changes})


def write(path: Path, force: bool = False, **changes: Any) -> Bundle:
    with new_bundle(path, force) as (folder, finish):
        for name, data in FILES.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        finish(manifest(**changes))
    return Bundle.open(path)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write(tmp_path / "run")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def forge(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """What someone with an editor and this source can do: change the manifest and seal it again."""
    document = json.loads((path / "manifest.json").read_text())
    del document["seal"]
    change(document)
    seal = hashlib.sha256(canonical_json(document).encode()).hexdigest()
    (path / "manifest.json").write_text(canonical_json({**document, "seal": seal}))


def notices(path: Path) -> bool:
    try:
        return bool(Bundle.open(path).verify())
    except BundleError as error:
        return bool(error.message and error.hint)


def test_what_was_written_is_what_is_read(bundle: Bundle) -> None:
    assert bundle.verify() == []
    assert bundle.manifest.point.metrics == {"depth": 0.1}
    assert set(bundle.manifest.files) == set(FILES)
    assert bundle.checked_file("history.json").read_bytes() == b"[]\n"
    assert names(bundle.path.parent) == ["run"]


@pytest.mark.parametrize("flip", [0x01, 0x07, 0x80])  # 0x07 turns a line feed into a carriage return
def test_any_changed_byte_of_the_manifest_is_noticed(bundle: Bundle, flip: int) -> None:
    path = bundle.path / "manifest.json"
    sound = path.read_bytes()
    missed = []
    for position in range(len(sound)):
        path.write_bytes(sound[:position] + bytes([sound[position] ^ flip]) + sound[position + 1 :])
        if not notices(bundle.path):
            missed.append(position)
    assert missed == []


@pytest.mark.parametrize("name", FILES)
def test_any_changed_byte_of_a_file_is_noticed(bundle: Bundle, name: str) -> None:
    path, sound = bundle.path / name, FILES[name]
    for position in range(len(sound)):
        path.write_bytes(sound[:position] + bytes([sound[position] ^ 1]) + sound[position + 1 :])
        (problem,) = Bundle.open(bundle.path).verify()
        assert f"{name} was changed or truncated" in problem
        with pytest.raises(BundleError, match="was changed"):
            bundle.checked_file(name)


@pytest.mark.parametrize("name", ["manifest.json", *FILES])
@pytest.mark.parametrize("left", [0, 0.5])
def test_a_truncated_file_is_noticed(bundle: Bundle, name: str, left: float) -> None:
    path = bundle.path / name
    os.truncate(path, int(left * path.stat().st_size))
    assert notices(bundle.path)


def test_a_missing_file_is_named(bundle: Bundle) -> None:
    (bundle.path / "history.json").unlink()
    with pytest.raises(BundleError, match=r"history\.json is missing"):
        Bundle.open(bundle.path)


@pytest.mark.parametrize(
    "make", [Path.touch, os.mkfifo, lambda path: path.symlink_to("/"), lambda path: path.symlink_to("x")]
)
def test_a_foreign_file_is_named(bundle: Bundle, make: Callable[[Path], object]) -> None:
    make(bundle.path / "points" / "notes.txt")
    (problem,) = bundle.verify()
    assert "points/notes.txt is not in the manifest" in problem
    with pytest.raises(BundleError, match=r"not in the manifest|no plain file"):
        bundle.checked_file("points/notes.txt")


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "points/../../secret", "..", "", ".", "a\0b", "x" * 5000]
)
def test_a_name_that_leads_outside_is_refused(bundle: Bundle, name: str) -> None:
    (bundle.path.parent / "secret").write_text("secret")
    forge(bundle.path, lambda document: document["files"].update({name: "0" * 64}))
    with pytest.raises(BundleError, match="no plain file inside the bundle"):
        Bundle.open(bundle.path)


@pytest.mark.parametrize("link", ["history.json", "points"])
def test_a_link_is_refused_even_to_the_same_bytes(bundle: Bundle, link: str) -> None:
    outside = bundle.path.parent / "outside"
    (bundle.path / link).rename(outside)
    (bundle.path / link).symlink_to(outside)
    with pytest.raises(BundleError, match="no plain file inside the bundle"):
        Bundle.open(bundle.path)


def test_a_link_to_itself_is_refused(bundle: Bundle) -> None:
    (bundle.path / "history.json").unlink()
    (bundle.path / "history.json").symlink_to("history.json")
    with pytest.raises(BundleError):
        Bundle.open(bundle.path)


def test_a_newer_schema_says_so(bundle: Bundle) -> None:
    forge(bundle.path, lambda document: document.update(schema_version=SCHEMA + 1, novelty=[1]))
    with pytest.raises(BundleError, match="newer Secateur") as caught:
        Bundle.open(bundle.path)
    assert "upgrade" in caught.value.hint


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.pop("points"),
        lambda document: document.update(points=[]),
        lambda document: document.update(chosen=7),
        lambda document: document.update(chosen=-1),
        lambda document: document.update(unknown=1),
        lambda document: document.update(schema_version="one"),
        lambda document: document["files"].update({"history.json": 3}),
    ],
)
def test_a_forged_manifest_is_refused_in_one_line(bundle: Bundle, change: Callable[[dict[str, Any]], object]) -> None:
    forge(bundle.path, change)
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle.path)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", '{"seconds": 1e999}', '{"seconds": NaN}', '{"seconds": "\\ud800"}', "[" * 100_000, "\ud800"],
)
def test_what_is_no_manifest_is_refused(bundle: Bundle, text: str) -> None:
    (bundle.path / "manifest.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(BundleError):
        Bundle.open(bundle.path)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "file", tmp_path / ("x" * 5000)):
        with pytest.raises(BundleError, match="is no bundle"):
            Bundle.open(path)


@pytest.mark.parametrize("force", [False, True])
def test_an_output_that_holds_something_else_is_refused_and_untouched(tmp_path: Path, force: bool) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("thesis")
    before = snapshot(tmp_path)
    for name, why in {"thesis": "no bundle", "file": "not a folder", "link": "not a folder"}.items():
        with pytest.raises(OutputError, match=why):
            write(tmp_path / name, force)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", [".", ".."])
def test_the_folder_one_is_in_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError):
        write(Path(name))


def test_a_bundle_is_replaced_only_when_asked(bundle: Bundle) -> None:
    before = snapshot(bundle.path)
    with pytest.raises(OutputError, match="already holds a bundle") as caught:
        write(bundle.path, seed=1)
    assert "--force" in caught.value.hint
    assert snapshot(bundle.path) == before
    assert write(bundle.path, force=True, seed=1).manifest.seed == 1
    assert names(bundle.path.parent) == ["run"]


def test_a_name_too_long_for_the_system_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write(tmp_path / ("x" * 300))


def test_a_failed_replacement_leaves_the_old_bundle(bundle: Bundle) -> None:
    before = snapshot(bundle.path)

    def interrupted() -> None:
        with new_bundle(bundle.path, force=True) as (folder, _):
            (folder / "history.json").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert snapshot(bundle.path) == before
    assert names(bundle.path.parent) == ["run"]


def test_a_change_keeps_the_rest_and_hashes_the_new(bundle: Bundle) -> None:
    artefact = Artefact(format="onnx", path="artefacts/model.onnx", max_abs=0, mean_abs=0, metrics={}, samples=1)
    with changed_bundle(bundle) as (folder, finish):
        (folder / "artefacts").mkdir()
        (folder / artefact.path).write_bytes(b"onnx")
        finish(bundle.manifest.model_copy(update={"artefacts": [artefact]}))
    changed = Bundle.open(bundle.path)
    assert changed.verify() == []
    assert set(changed.manifest.files) == {*FILES, artefact.path}
    assert changed.manifest.artefacts == [artefact]


def test_a_failed_change_leaves_the_original(bundle: Bundle) -> None:
    before = snapshot(bundle.path)

    def failing() -> None:
        with changed_bundle(bundle) as (folder, _):
            (folder / "history.json").unlink()
            raise RuntimeError("exporter failed")

    with pytest.raises(RuntimeError):
        failing()
    assert snapshot(bundle.path) == before
    assert names(bundle.path.parent) == ["run"]


@pytest.mark.parametrize("name", ["history.json", "notes.txt"])
def test_a_change_does_not_bless_what_was_altered(bundle: Bundle, name: str) -> None:
    (bundle.path / name).write_text("altered")
    before = snapshot(bundle.path)
    with pytest.raises(BundleError, match=name), changed_bundle(bundle):
        pytest.fail("an altered bundle was opened for a change")
    assert snapshot(bundle.path) == before


def test_a_change_does_not_undo_one_that_another_process_made_meanwhile(bundle: Bundle) -> None:
    def slow() -> None:
        with changed_bundle(bundle) as (_, finish):
            with changed_bundle(bundle) as (folder, finish_first):
                (folder / "first.txt").write_text("first")
                finish_first(bundle.manifest)
            finish(bundle.manifest)

    with pytest.raises(OutputError, match="changed by another process meanwhile"):
        slow()
    assert "first.txt" in Bundle.open(bundle.path).manifest.files


def test_a_bundle_on_a_file_system_without_hard_links(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with changed_bundle(bundle) as (_, finish):
        finish(bundle.manifest)
    assert Bundle.open(bundle.path).verify() == []
