"""The verbs, as Python functions: `import secateur as sc`, then `sc.prune(...)`, `sc.select(...)`, `sc.benchmark(...)`.

Each lives in a module of its own under `secateur.verbs`; the command line types the same ones.
"""

from __future__ import annotations

from secateur.verbs.benchmark import Benchmark, benchmark
from secateur.verbs.calibrate import CalibrationReport, calibrate
from secateur.verbs.compress import compress_to_bundle
from secateur.verbs.export import Artefact, export
from secateur.verbs.extract import extract, extract_to_bundle
from secateur.verbs.farm import FarmReport, farm
from secateur.verbs.inspect import Inspection, inspect
from secateur.verbs.load import Loaded, load
from secateur.verbs.prune import prune
from secateur.verbs.report import report
from secateur.verbs.select import Selection, select
from secateur.verbs.slim import slim, slim_to_bundle
from secateur.verbs.sweep import Sweep, sweep
from secateur.verbs.verify import Verification, verify

__all__ = [
    "Artefact",
    "Benchmark",
    "CalibrationReport",
    "FarmReport",
    "Inspection",
    "Loaded",
    "Selection",
    "Sweep",
    "Verification",
    "benchmark",
    "calibrate",
    "compress_to_bundle",
    "export",
    "extract",
    "extract_to_bundle",
    "farm",
    "inspect",
    "load",
    "prune",
    "report",
    "select",
    "slim",
    "slim_to_bundle",
    "sweep",
    "verify",
]
