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
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from secateur.core.budget import Tolerance
from secateur.core.errors import BudgetError, BundleError, OutputError
from secateur.core.files import canonical_json, clear_errors, sha256, writing_folder

SCHEMA = 1
MANIFEST = "manifest.json"
_PART = r"\w[\w.+-]{0,99}"
_NAME = re.compile(rf"{_PART}(?:/{_PART}){{0,9}}", re.ASCII)  # no "..", no leading "/", no hidden files
_AGAIN = "copy the bundle again, or compress again"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CostsEntry(_Model):
    flops: int
    macs: int
    params: int
    peak_memory_bytes: int
    size_bytes: int
    predicted_ms: float | None = None
    predicted_mj: float | None = None


class OnTarget(_Model):
    """What a budget's limits on latency and energy were judged by.

    Attributes:
        basis: what the predictions of `costs` come from.
        figures: kind → (chosen point, original) of the exported models on the target; empty where there are none.
        source: of the figures, "measured" or "predicted".
        corrections: kind → figure over prediction, by which the limit was scaled before pruning went on.
    """

    target: str
    basis: str
    figures: dict[str, tuple[float, float]] = Field(default_factory=dict)
    source: Literal["measured", "predicted"] = "predicted"
    corrections: dict[str, float] = Field(default_factory=dict)


class Point(_Model):
    """One compressed model of a run: a point on its Pareto front."""

    weights: str
    channels: str
    costs: CostsEntry
    metrics: dict[str, float]
    delta_mtl: float
    latency_ms: dict[str, float] = Field(default_factory=dict)  # target → median, measured when the run ended


class Artefact(_Model):
    """An exported form of the chosen point, with the proof that it computes the same, or the reason why it could not
    be run where it was made."""

    format: str
    path: str
    beside: list[str] = Field(default_factory=list)  # files that it needs next to it
    options: dict[str, Any] = Field(default_factory=dict)  # what was asked of the exporter
    details: dict[str, Any] = Field(default_factory=dict)  # what the exporter found worth keeping
    max_abs: float | None = None
    mean_abs: float | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    samples: int = 0
    unproven: str | None = None

    @property
    def files(self) -> list[str]:
        return [self.path, *self.beside]


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
    on_target: OnTarget | None = None
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

    @model_validator(mode="after")
    def _one_point_is_chosen(self) -> Self:
        if not 0 <= self.chosen < len(self.points):
            raise ValueError(f"the chosen point {self.chosen} is none of the {len(self.points)}")
        return self

    @property
    def drops(self) -> Tolerance | None:
        """How much of its metric each task might lose; None where nothing was allowed or forbidden."""
        try:
            return Tolerance.parse(self.tolerance) if self.tolerance.strip() else None
        except BudgetError:  # anything was allowed, or a task's name cannot be typed
            return None

    @property
    def point(self) -> Point:
        """The point that was chosen."""
        return self.points[self.chosen]

    def plain_artefact(self, form: str) -> Artefact | None:
        """The artefact of a format that was exported without options."""
        return next((each for each in self.artefacts if each.format == form and not each.options), None)


class Bundle:
    """A bundle on disk, opened and checked for schema and completeness. Hashes are checked by `verify`.

    Attributes:
        ships: whether it is one of Secateur's own, found by its name, which nobody changes.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self.ships = False

    def __repr__(self) -> str:
        found = self.manifest
        return f"<Bundle {self.path}: {found.workload} by {found.method}, points: {len(found.points)}>"

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
        with _readable():
            for name in bundle.manifest.files:
                if not bundle.file(name).is_file():
                    raise BundleError(f"{folder}: {name} is missing", _AGAIN)
        return bundle

    def file(self, name: str) -> Path:
        """The path of a file of the bundle; refuses names that lead outside of it."""
        inside = self.path / name
        steps = [inside, *inside.parents][: name.count("/") + 1]
        if not _NAME.fullmatch(name) or any(step.is_symlink() for step in steps):
            raise BundleError(f"{self.path}: {name!r} is no plain file inside the bundle", "do not use this bundle")
        return inside

    def checked_file(self, name: str) -> Path:
        """The path of a file whose hash was found right: what must be called before its content is used."""
        path = self.file(name)
        expected = self.manifest.files.get(name)
        if expected is None:
            raise BundleError(f"{self.path}: {name} is not in the manifest", "do not use this bundle")
        with _readable():
            found = sha256(path)
        if found != expected:
            raise BundleError(f"{self.path}: {name} was changed or truncated", _AGAIN)
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
    try:
        return (path / MANIFEST).is_file()
    except OSError:  # a name that is too long, a folder that may not be read
        return False


def check_output(path: Path, force: bool = False) -> None:
    """Refuse an output folder that holds something else, or a bundle that was not meant to be replaced.

    Raises:
        OutputError
    """
    with clear_errors(path):
        taken = path.is_symlink() or (path.exists() and not path.is_dir())
        holds_something = path.is_dir() and any(path.iterdir())
    if taken:
        raise OutputError(f"{path} is not a folder", "choose another output with -o")
    if path.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise OutputError(f"{path} is the folder you are in, or above it", "name a new folder with -o")
    if holds_something:
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

    Raises:
        BundleError: when the bundle is not what was written: a change must not put a new hash on an altered file.
        OutputError: for one that ships with Secateur, or that another process changed meanwhile.
    """
    if bundle.ships:
        raise OutputError(
            f"{bundle.path.name} ships with Secateur and stays as it is", f"copy it first: cp -r {bundle.path} ."
        )
    if problems := bundle.verify():
        raise BundleError(problems[0], _AGAIN)
    before = sha256(bundle.path / MANIFEST)
    with writing_folder(bundle.path) as folder:
        for name in bundle.manifest.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            _link(bundle.file(name), folder / name)
        yield folder, lambda manifest: _finish(folder, manifest)
        if sha256(bundle.path / MANIFEST) != before:
            raise OutputError(f"{bundle.path} was changed by another process meanwhile", "repeat the command")


def _link(source: Path, destination: Path) -> None:
    try:
        os.link(source, destination)
    except OSError:  # a file system without hard links
        shutil.copy2(source, destination)


def _finish(folder: Path, manifest: Manifest) -> None:
    files = {name: sha256(folder / name) for name in _names(folder)}
    document = manifest.model_copy(update={"files": files}).model_dump(mode="json")
    (folder / MANIFEST).write_bytes(canonical_json(_sealed(document)).encode())


def _names(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()
    )


def _sealed(document: dict[str, Any]) -> dict[str, Any]:
    """The manifest with the hash of itself, so that a changed byte in it is found too."""
    return {**document, "seal": hashlib.sha256(canonical_json(document).encode()).hexdigest()}


@contextmanager
def _readable() -> Iterator[None]:
    """Raises:
    BundleError: this user may not read a file.
    """
    try:
        yield
    except PermissionError as error:
        raise BundleError(f"not allowed to read {error.filename}", "ask its owner for it") from error


def _read_manifest(path: Path) -> Manifest:
    try:
        with _readable():
            text = path.read_bytes().decode()
        document = json.loads(text)
        if not isinstance(document, dict):
            raise ValueError("it is no JSON object")
        unsealed = {key: value for key, value in document.items() if key != "seal"}
        intact = canonical_json(_sealed(unsealed)) == text
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} is damaged: {error}", _AGAIN) from error
    schema = document.get("schema_version")
    if isinstance(schema, int) and schema > SCHEMA:
        raise BundleError(
            f"{path.parent} was written by a newer Secateur (schema {schema}, this one reads {SCHEMA})",
            "upgrade with: pip install -U secateur",
        )
    if not intact:
        raise BundleError(f"{path} was changed or truncated, or is not the manifest of a bundle", _AGAIN)
    try:
        return Manifest.model_validate(unsealed)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BundleError(f"{path}: {where}: {first['msg']}", _AGAIN) from error
