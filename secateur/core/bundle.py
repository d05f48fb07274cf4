"""Bundle: the folder that is the unit of hand-over. It exists whole or not at all, and every byte is accounted for.

manifest.json                    what was done, with the sha256 of every other file
points/00/weights.safetensors    the compressed models of the run, from large to small: tensors
points/00/channels.json          and the channel map that rebuilds each from the user's own class
history.json                     the decisions, in order
artefacts/model.onnx             exported forms of the chosen point
report.html
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from secateur.core.errors import BundleError, OutputError
from secateur.core.files import canonical_json, sha256, writing_folder

SCHEMA = 1
MANIFEST = "manifest.json"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CostsEntry(_Model):
    flops: int
    macs: int
    params: int
    peak_memory_bytes: int
    size_bytes: int


class Point(_Model):
    """One compressed model of a run: a point on its Pareto front."""

    weights: str
    channels: str
    costs: CostsEntry
    metrics: dict[str, float]
    delta_mtl: float
    latency_ms: dict[str, float] = Field(default_factory=dict)  # target → median, measured when the run ended


class Artefact(_Model):
    """An exported form of the chosen point, with the proof that it computes the same."""

    format: str
    path: str
    max_abs: float
    mean_abs: float
    metrics: dict[str, float]
    samples: int


class TaskEntry(_Model):
    name: str
    better: Literal["higher", "lower"]


class Manifest(_Model):
    """Everything a reader must know of a bundle, and the hash of every file in it."""

    schema_version: int = SCHEMA
    method: str
    workload: str
    reference: str | None
    tasks: list[TaskEntry]
    budget: list[str]
    tolerance: str
    budget_met: bool
    misses: list[str] = Field(default_factory=list)
    before: CostsEntry
    metrics_before: dict[str, float]
    points: list[Point]
    chosen: int
    artefacts: list[Artefact] = Field(default_factory=list)
    oracle: dict[str, float] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)
    seed: int
    command: str
    seconds: float
    created: str
    machine: dict[str, str | int]
    versions: dict[str, str]
    files: dict[str, str] = Field(default_factory=dict)

    @property
    def point(self) -> Point:
        """The point that was chosen."""
        return self.points[self.chosen]


class Bundle:
    """A bundle on disk, opened and checked for schema and completeness. Hashes are checked by `verify`."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Open a bundle.

        Raises:
            BundleError: not a bundle, a newer schema, a damaged manifest, a missing or foreign file.
        """
        folder = Path(path)
        if not is_bundle(folder):
            raise BundleError(
                f"{folder} is no bundle", f"a bundle is a folder with a {MANIFEST}, as compress writes it"
            )
        bundle = cls(folder, _read_manifest(folder / MANIFEST))
        for name in bundle.manifest.files:
            if not bundle.file(name).is_file():
                raise BundleError(f"{folder}: {name} is missing", "copy the bundle again, or compress again")
        return bundle

    def file(self, name: str) -> Path:
        """The path of a file of the bundle; refuses names that lead outside of it."""
        pure = PurePosixPath(name)
        inside = self.path / pure
        if pure.is_absolute() or ".." in pure.parts or inside.is_symlink():
            raise BundleError(f"{self.path}: {name!r} leads outside the bundle", "do not use this bundle")
        return inside

    def checked_file(self, name: str) -> Path:
        """The path of a file whose hash was found right: what must be called before its content is used."""
        path = self.file(name)
        expected = self.manifest.files.get(name)
        if expected is None:
            raise BundleError(f"{self.path}: {name} is not in the manifest", "do not use this bundle")
        if sha256(path) != expected:
            raise BundleError(
                f"{self.path}: {name} was changed or truncated", "copy the bundle again, or compress again"
            )
        return path

    def verify(self) -> list[str]:
        """Every deviation from what was written, as sentences: changed, missing and foreign files."""
        problems = []
        for name in sorted(self.manifest.files):
            try:
                self.checked_file(name)
            except BundleError as error:
                problems.append(error.message)
        known = {MANIFEST, *self.manifest.files}
        problems += [f"{self.path}: {name} is not in the manifest" for name in _names(self.path) if name not in known]
        return problems


def is_bundle(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def check_output(path: Path, force: bool = False) -> None:
    """Refuse an output folder that holds something else, or a bundle that was not meant to be replaced.

    Raises:
        OutputError
    """
    if path.is_symlink() or path.is_file():
        raise OutputError(f"{path} is not a folder", "choose another output with -o")
    if path.is_dir() and any(path.iterdir()):
        if not is_bundle(path):
            raise OutputError(f"{path} holds something that is no bundle", "choose another output with -o")
        if not force:
            raise OutputError(
                f"{path} already holds a bundle", "choose another output with -o, or replace it with --force"
            )


@contextmanager
def new_bundle(path: Path, force: bool = False) -> Iterator[tuple[Path, Callable[[Manifest], None]]]:
    """Write a bundle: yields its (temporary) folder and `finish(manifest)`, which hashes the files.

    The folder takes its place only when the block ends without an error.
    """
    check_output(path, force)
    with writing_folder(path) as folder:
        yield folder, lambda manifest: _finish(folder, manifest)


@contextmanager
def changed_bundle(bundle: Bundle) -> Iterator[tuple[Path, Callable[[Manifest], None]]]:
    """Change a bundle as a whole: yields a copy of it (hard links where possible), as `new_bundle` does.

    Files of the copy must be replaced, not written into: a hard link shares its bytes with the original.
    """
    with writing_folder(bundle.path) as folder:
        shutil.copytree(bundle.path, folder, copy_function=_link, dirs_exist_ok=True)
        (folder / MANIFEST).unlink()
        yield folder, lambda manifest: _finish(folder, manifest)


def _link(source: str, destination: str) -> None:
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)


def _finish(folder: Path, manifest: Manifest) -> None:
    files = {name: sha256(folder / name) for name in _names(folder)}
    document = manifest.model_copy(update={"files": files}).model_dump(mode="json")
    (folder / MANIFEST).write_text(canonical_json(_sealed(document)), encoding="utf-8")


def _names(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() or path.is_symlink()
    )


def _sealed(document: dict[str, Any]) -> dict[str, Any]:
    """The manifest with the hash of itself, so that a changed byte in it is found too."""
    return {**document, "seal": hashlib.sha256(canonical_json(document).encode()).hexdigest()}


def _read_manifest(path: Path) -> Manifest:
    again = "copy the bundle again, or compress again"
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is damaged: {error}", again) from error
    if not isinstance(document, dict) or not isinstance(document.get("schema_version"), int):
        raise BundleError(f"{path} is not the manifest of a bundle", again)
    if document["schema_version"] > SCHEMA:
        raise BundleError(
            f"{path.parent} was written by a newer Secateur (schema {document['schema_version']}, this one reads {SCHEMA})",
            "upgrade with: pip install -U secateur",
        )
    unsealed = {key: value for key, value in document.items() if key != "seal"}
    if canonical_json(_sealed(unsealed)) != text:
        raise BundleError(f"{path} was changed or truncated", again)
    try:
        return Manifest.model_validate(unsealed)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BundleError(f"{path}: {where}: {first['msg']}", again) from error
