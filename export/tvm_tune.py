"""Tuning: tiles of the products that take the time, measured; the fastest is remembered.

It starts from the rule: the rule's tile is always among the candidates, so that a tuned network is no slower than an
untuned one, product by product. Trials go where the multiplications are. What was found is kept in the user's cache
folder, one file for each CPU and version of TVM, and used by every later export without another trial.

TVM's MetaSchedule was tried before: 194 trials took 624 s and gave 46 to 63 ms where the rule gave 38. A product with
another tile takes a fraction of a second to build and measure.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from secateur.core.cache import cache_folder
from secateur.core.files import write_json
from secateur.core.progress import say
from secateur.export.tvm_kernels import Tile, Vectors
from secateur.export.tvm_lower import define
from secateur.export.tvm_products import Choose, Product, by_rule
from secateur.export.tvm_schedule import schedule_module

Found = Mapping[str, Tile]
SCHEDULE = 2
"""Counts on when another schedule or layout makes other tiles the fastest: what was found before is not used then."""
CANDIDATES = 8
"""Tiles that are tried for one product, the rule's first."""
REPEATS = 7


class Recorder:
    """Chooses what is known, and by the rule; remembers every product that it was asked about."""

    def __init__(self, known: Found, cpu: Vectors) -> None:
        self.products: dict[str, Product] = {}
        self.uses: Counter[str] = Counter()
        self._known, self._rule = known, by_rule(cpu)

    def __call__(self, product: Product) -> Tile:
        self.products[product.key] = product
        self.uses[product.key] += 1
        return self._known.get(product.key) or self._rule(product)


def known_tiles(file: Path) -> dict[str, Tile]:
    """What was found before; nothing when the file is missing or damaged, since it can be found again."""
    try:
        document = json.loads(file.read_bytes())
        return {str(key): Tile(int(rows), int(vectors)) for key, (rows, vectors) in document.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def database(cpu: str, version: str) -> Path:
    """The file of one CPU and version of TVM, below `$SECATEUR_CACHE` or the user's cache folder."""
    folder = cache_folder()
    return folder / "tvm" / f"{cpu}-{version}-{SCHEDULE}.json"


def chooser(file: Path, cpu: Vectors) -> Choose:
    """Known tiles, else the rule's."""
    known, rule = known_tiles(file), by_rule(cpu)
    return lambda product: known.get(product.key) or rule(product)


def tune(recorder: Recorder, file: Path, target: Any, cpu: Vectors, trials: int) -> dict[str, Tile]:
    """Measure tiles of the products that a network asked for, the heaviest first, until the trials are spent.

    Returns:
        everything known now; it is also in the file, which is written after each product.
    """
    known = known_tiles(file)
    heavy = sorted(recorder.products.values(), key=lambda each: -each.macs * recorder.uses[each.key])
    for product in heavy:
        if product.key in known or trials < 2:
            continue
        tiles = product.tiles(cpu)[: min(trials, CANDIDATES)]
        trials -= len(tiles)
        times = {tile: _milliseconds(product, tile, target, cpu) for tile in tiles}
        known[product.key] = min(times, key=lambda tile: times[tile])
        say(f"{product.key}: {times[tiles[0]]:.3f} ms by the rule, {times[known[product.key]]:.3f} ms tuned")
        write_json(file, {key: [tile.rows, tile.vectors] for key, tile in known.items()})
    return known


def _milliseconds(product: Product, tile: Tile, target: Any, cpu: Vectors) -> float:
    """The fastest of several calls of the product alone, on one thread or as many as TVM's pool has."""
    import tvm

    function, weights = define(product, tile)
    module = schedule_module(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}), cpu)
    library = tvm.compile(module, target=target)
    shapes = [*product.inputs, *([] if weights is None else [weights.shape]), _output(function)]
    noise = np.random.default_rng(0)
    arrays = [tvm.runtime.tensor(noise.standard_normal(shape, np.float32)) for shape in shapes]
    evaluate = library.mod.time_evaluator("main", tvm.cpu(), number=1, repeat=REPEATS, min_repeat_ms=2)
    return 1e3 * float(min(evaluate(*arrays).results))


def _output(function: Any) -> tuple[int, ...]:
    """Shape of a program's result, its last parameter."""
    return tuple(int(size) for size in function.params[-1].shape)
