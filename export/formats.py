"""The formats a model can be exported to: one class each, registered under the name that users type.

    @register
    class Onnx(Exporter):
        name = "onnx"
        honours = frozenset({"precision", "static", "opset"})
        def write(self, source, folder, options): ...     # the artefacts, into the folder
        def open(self, path, threads=1): ...              # an artefact, ready to run

Whatever was written is opened again and run beside the torch model; what differs is an error. Only what cannot run on
this machine stands without that proof, and says why. A module of `export/` that registers a class here is known to
the command line as soon as `export/load.py` names it; heavy packages are imported inside its methods.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, get_args

from secateur.core.errors import ExportError, MissingExtraError, ParityError, TargetUnavailableError
from secateur.export.runtime import Runtime, predictor
from secateur.export.source import Source

if TYPE_CHECKING:
    from secateur.export.parity import Parity

Precision = Literal["fp32", "fp16"]


@dataclass(frozen=True)
class Options:
    """What a user asks of an export besides the format; each exporter honours some of it, see `Exporter.honours`.

    Args:
        precision: of weights and arithmetic.
        static: the batch of the example input instead of any batch.
        opset: of the ONNX file.
        board: whose limits an FPGA design keeps.
        trials: of tuning on this machine, before native code is built.
        arch: of the processor that native code is for, this machine's CPU when empty.
        capabilities: of the GPUs that engines are built for, 86 being compute capability 8.6; all when empty.
    """

    precision: Precision = "fp32"
    static: bool = False
    opset: int | None = None
    board: str | None = None
    arch: str = ""
    trials: int = 0
    capabilities: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ExportError(
                f'unknown precision "{self.precision}"', f"it is one of: {', '.join(get_args(Precision))}"
            )

    def asked(self) -> dict[str, Any]:
        """The options that differ from their defaults, as plain data; `Options.of` is the way back."""
        default = Options()
        return {key: value for key, value in asdict(self).items() if value != getattr(default, key)}

    @classmethod
    def of(cls, asked: Mapping[str, Any]) -> Options:
        """Options from plain data, such as a manifest's.

        Raises:
            ExportError: an option that this version does not know.
        """
        unknown = set(asked) - {each.name for each in fields(cls)}
        if unknown:
            raise ExportError(f"unknown export option {sorted(unknown)[0]}", "upgrade with: pip install -U secateur")
        plain: dict[str, Any] = {key: tuple(each) if isinstance(each, list) else each for key, each in asked.items()}
        return cls(**plain)


@dataclass(frozen=True)
class Request:
    """A format by name, and how it is wanted."""

    format: str
    options: Options = Options()


@dataclass(frozen=True)
class Written:
    """What an exporter wrote: the file that is opened, the files beside it that it needs, and facts worth keeping
    (plain data: layers, shapes, compute capability)."""

    path: Path
    beside: tuple[Path, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Exported:
    """An artefact with its proof, or with the reason why it could not be run here."""

    written: Written
    parity: Parity | None
    unproven: str | None = None


class Exporter(ABC):
    """One format. `packages` must be importable and come with the extra `extra`; `honours` names the fields of
    Options that it knows; `batches` of the test split are compared."""

    name: ClassVar[str]
    extra: ClassVar[str] = ""
    packages: ClassVar[tuple[str, ...]] = ()
    honours: ClassVar[frozenset[str]] = frozenset()
    batches: ClassVar[int] = 8
    computes: ClassVar[str] = ""  # in what, where it is not the precision that was asked for; see parity.TOLERANCES

    @abstractmethod
    def write(self, source: Source, folder: Path, options: Options) -> Sequence[Written]:
        """Write the artefacts into an empty folder.

        Raises:
            ExportError: a model that the format cannot express.
        """

    @abstractmethod
    def open(self, path: Path, threads: int = 1) -> Runtime:
        """An artefact, loaded and ready to run here, on so many threads where the runtime has any say in it.

        Raises:
            ExportError: the file is damaged, or none of this format.
            TargetUnavailableError: it does not run on this machine.
        """

    def require(self) -> None:
        """Raise MissingExtraError unless the packages of this format are installed."""
        for package in self.packages:
            if importlib.util.find_spec(package) is None:
                raise MissingExtraError(package, self.extra)

    def export(self, source: Source, folder: Path, options: Options) -> list[Exported]:
        """Write and prove.

        Raises:
            ExportError, MissingExtraError: see `write` and `require`.
            ParityError: an artefact that does not compute what the model computes.
        """
        self.require()
        return [self._proven(written, source, options) for written in self.write(source, folder, options)]

    def _proven(self, written: Written, source: Source, options: Options) -> Exported:
        try:
            return Exported(written, self.prove(written.path, source, options))
        except TargetUnavailableError as error:
            return Exported(written, None, error.message)

    def prove(self, path: Path, source: Source, options: Options) -> Parity:
        """The artefact beside the torch model on the workload's test samples.

        Raises:
            ParityError, TargetUnavailableError, ExportError: see `export` and `open`.
        """
        from secateur.export.parity import check_parity

        self.require()
        with self.open(path) as runtime:
            try:
                return check_parity(
                    source.model,
                    predictor(runtime),
                    source.workload,
                    precision=self.computes or options.precision,
                    batches=self.batches,
                )
            except ParityError as error:
                raise ParityError(f"{self.name}: {error.message}", error.hint) from error


_exporters: dict[str, Exporter] = {}
Kind = TypeVar("Kind", bound=type[Exporter])


def register(kind: Kind) -> Kind:
    """Class decorator: make an exporter known under its name."""
    _exporters[kind.name] = kind()
    return kind


def known() -> tuple[str, ...]:
    """Names of the formats that this version exports."""
    return tuple(sorted(_exporters))


def get(name: str) -> Exporter:
    """The exporter of a format.

    Raises:
        ExportError: when this version has none; the hint lists those it has.
    """
    if name not in _exporters:
        raise ExportError(f'this version has no exporter for "{name}"', f"it exports to: {', '.join(known())}")
    return _exporters[name]


def honoured(exporter: Exporter, options: Options) -> Options:
    """The options that an exporter knows; others were meant for the formats exported along with it."""
    return Options.of({key: value for key, value in options.asked().items() if key in exporter.honours})


_TYPED = {"trials": "tune", "capabilities": "capability"}
"""Options that are typed by other names."""


def check_requests(requests: Iterable[Request]) -> None:
    """Refuse an unknown format, and an option that none of the formats would honour.

    Raises:
        ExportError
    """
    requests = list(requests)
    if not requests:
        raise ExportError("no format was named", f"this version exports to: {', '.join(known())}")
    honoured = frozenset[str]().union(*(get(request.format).honours for request in requests))
    for request in requests:
        for option in request.options.asked():
            if option not in honoured:
                names = ", ".join(name for name in known() if option in _exporters[name].honours)
                typed = _TYPED.get(option, option)
                raise ExportError(f"{request.format} does not know the option {typed}", f"it is one of: {names}")
