"""Train the elastic models that ship, and write their bundles beside the built-in workloads:

python -m secateur.verbs.train_elastic scenes-elastic [--epochs N] [--threads N] [--output FOLDER]

The bundle holds weights in half precision, the table of all configurations with latencies of this machine's CPU, and
the statistics of the exported ones; the files that switch widths are written from it by `secateur export --to elastic`.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from secateur.compress.slimmable import Settings, slim
from secateur.compress.slimmable.export import Configurations
from secateur.core.bundle import Bundle
from secateur.core.errors import SecateurError
from secateur.core.progress import say
from secateur.export.elastic_graph import ElasticSource
from secateur.verbs.measure import places
from secateur.verbs.slim import export_and_measure
from secateur.verbs.staging import state_folder
from secateur.workloads import workload as workload_by_name

SHIPPED = {
    "scenes-elastic": (
        "scenes",
        Settings(widths=(0.125, 0.25, 0.5, 1.0), epochs=8, lr=1e-3, exported=8, half=True, calibration_samples=192),
    )
}
"""Name of the bundle → workload and settings. The widths span 33x in FLOPs, in steps of 3-4x; the epochs keep a run
at about 40 minutes on two cores."""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        for name in options.bundle:
            path = train(name, options.epochs, options.output / name, options.seed)
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            say(f"{name}: {path}, {size / 2**20:.1f} MiB")
    except SecateurError as error:
        say(f"error: {error.message}\n{error.hint}")
        return error.exit_code
    return 0


def train(name: str, epochs: int | None, output: Path, seed: int = 0) -> Path:
    """Train one bundle; a stopped run continues where it was."""
    reference, settings = SHIPPED[name]
    settings = settings if epochs is None else replace(settings, epochs=epochs)
    workload, state = workload_by_name(reference), state_folder(output)
    result = slim(workload, settings, seed=seed, state=state, resume=True)
    source = ElasticSource(
        result.elastic.model, workload, result.table, Configurations(result.elastic, result.table, result.statistics)
    )
    with tempfile.TemporaryDirectory(prefix="secateur-") as temporary:
        result.table = export_and_measure(source, Path(temporary), places("cpu"), "auto", result.parts)
    command = f"python -m secateur.verbs.train_elastic {name}" + (f" --epochs {epochs}" if epochs is not None else "")
    bundle: Bundle = result.save(output, force=True, command=command)
    shutil.rmtree(state, ignore_errors=True)
    return bundle.path


def _folder() -> Path:
    found = importlib.util.find_spec("secateur.workloads")
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(next(iter(found.submodule_search_locations))) / "bundles"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m secateur.verbs.train_elastic", description=__doc__)
    parser.add_argument("bundle", nargs="+", choices=list(SHIPPED))
    parser.add_argument("--epochs", type=int, help="passes over the training split (default: the recipe's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=_folder(), help="folder in which the bundles stand")
    return parser


if __name__ == "__main__":
    sys.exit(main())
