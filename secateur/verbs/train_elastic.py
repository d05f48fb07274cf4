"""Train the elastic models that ship, and write their bundles beside the built-in workloads:

python -m secateur.verbs.train_elastic scenes-elastic [--epochs N] [--threads N] [--output FOLDER]
python -m secateur.verbs.train_elastic scenes-elastic --measure     # latencies anew, on an idle machine

The bundle holds weights in half precision, the table of all configurations with latencies of this machine's CPU, and
the statistics of the exported ones; the files that switch widths are written from it by `secateur export --to elastic`.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch

from secateur.compress.slimmable import Settings, load_elastic, slim
from secateur.compress.slimmable.export import Configurations
from secateur.core.bundle import Bundle, changed_bundle
from secateur.core.elastic.files import TABLE
from secateur.core.errors import SecateurError
from secateur.core.files import canonical_json
from secateur.core.progress import say
from secateur.core.scratch import Scratch
from secateur.export.elastic_graph import ElasticSource
from secateur.profiles.latency.parts import read_parts
from secateur.verbs.measure import places
from secateur.verbs.slim import export_and_measure
from secateur.verbs.sources import workload_of
from secateur.verbs.staging import state_folder
from secateur.workloads import workload as workload_by_name

SHIPPED = {
    "scenes-elastic": (
        "scenes",
        Settings(widths=(0.125, 0.25, 0.5, 1.0), epochs=16, lr=3e-3, exported=8, half=True, calibration_samples=192),
    )
}
"""Name of the bundle → workload and settings. The widths span 33x in FLOPs, in steps of 3-4x; the epochs keep a run
at about 40 minutes on two cores."""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        for name in options.bundle:
            path = options.output / name
            if not options.measure:
                train(name, options.epochs, path, options.seed)
            measure(path)
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            say(f"{name}: {path}, {size / 2**20:.1f} MiB")
    except SecateurError as error:
        say(f"error: {error.message}\n{error.hint}")
        return error.exit_code
    return 0


def train(name: str, epochs: int | None, output: Path, seed: int = 0) -> None:
    """Train one bundle; a stopped run continues where it was."""
    reference, settings = SHIPPED[name]
    settings = settings if epochs is None else replace(settings, epochs=epochs)
    state = state_folder(output)
    result = slim(workload_by_name(reference), settings, seed=seed, state=state, resume=True)
    command = f"python -m secateur.verbs.train_elastic {name}" + (f" --epochs {epochs}" if epochs is not None else "")
    result.save(output, force=True, command=command)
    shutil.rmtree(state, ignore_errors=True)


def measure(path: Path) -> None:
    """Export all widths of a bundle, prove them, and put their latencies on this machine's CPU into its table."""
    bundle = Bundle.open(path)
    workload = workload_of(bundle)
    elastic, table, statistics = load_elastic(bundle, workload)
    source = ElasticSource(elastic.model, workload, table, Configurations(elastic, table, statistics))
    with Scratch() as temporary:
        table = export_and_measure(source, Path(temporary), places("cpu"), "auto", read_parts(bundle))
    with changed_bundle(bundle) as (folder, done):
        (folder / TABLE).unlink()
        (folder / TABLE).write_text(canonical_json(table.as_json()), encoding="utf-8")
        done(bundle.manifest)


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
    parser.add_argument("--measure", action="store_true", help="measure what is there, and train nothing")
    parser.add_argument("--output", type=Path, default=_folder(), help="folder in which the bundles stand")
    return parser


if __name__ == "__main__":
    sys.exit(main())
