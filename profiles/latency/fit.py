"""Fitting the published populations, and leaving networks out to see how far they can be trusted.

    python -m secateur.profiles.latency.fit        # writes data/population.json next to this file

A network that is left out is left out on every device, and its figures take no part in anything: not in the factors,
not in the population, not in the width of the intervals it is judged by.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secateur.core.files import writing
from secateur.profiles.latency.mixture import Mixture, fit
from secateur.profiles.latency.published import Backend, beliefs, known, spread, terms_of
from secateur.profiles.latency.tables import Setting, latencies
from secateur.profiles.latency.terms import covariates

Array = NDArray[np.float64]
COVERAGE = 0.9


@dataclass(frozen=True)
class Fold:
    """Predictions of networks that took no part in the fit; all of shape (networks, settings)."""

    settings: list[Setting]
    names: list[str]
    log_ms: Array
    predicted: Array
    spread: Array

    @property
    def errors(self) -> Array:
        """Relative errors, NaN where nothing was published."""
        return np.asarray(np.exp(self.predicted - self.log_ms) - 1)

    def width(self, without: int | None = None) -> float:
        """Multiple of the spread that holds COVERAGE of the figures, of all networks or all but one."""
        ratio = np.abs(self.predicted - self.log_ms) / self.spread
        if without is not None:
            ratio = np.delete(ratio, without, axis=0)
        return float(np.nanquantile(ratio, COVERAGE))

    def coverage(self) -> float:
        """Share of figures inside their interval, whose width comes from the other networks."""
        ratio = np.abs(self.predicted - self.log_ms) / self.spread
        inside = [ratio[index] <= self.width(index) for index in range(len(ratio))]
        return float(np.mean(np.concatenate([row[np.isfinite(r)] for row, r in zip(inside, ratio, strict=True)])))


def data(backend: Backend) -> tuple[list[Setting], list[str], Array, Array, Array]:
    """(settings, names, terms, log milliseconds, covariates), shapes as in `mixture`."""
    settings, names, ms = latencies(backend)
    if backend == "vulkan":
        return settings, names, known(backend), np.log(ms), covariates(None, len(settings))
    threads = [each.threads for each in settings]
    terms = np.concatenate([known(backend, count) for count in threads], axis=1)
    return settings, names, terms, np.log(ms), covariates(threads, len(settings))


def leave_one_out(backend: Backend) -> Fold:
    """Each network predicted on every device by a model that never saw it."""
    settings, names, terms, log_ms, traits = data(backend)
    predicted, wide = np.full(log_ms.shape, np.nan), np.full(log_ms.shape, np.nan)
    for index in range(len(names)):
        others = np.arange(len(names)) != index
        mixture = fit(terms[others], log_ms[others], traits, beliefs(backend))
        predicted[index] = mixture.predict(terms[[index]])[0]
        wide[index] = spread(mixture, terms[[index]], terms[others])[0]
    return Fold(settings, names, log_ms, predicted, wide)


def population(backend: Backend, fold: Fold) -> dict[str, object]:
    """The document of a backend: everything that a prediction needs, and its error."""
    settings, names, terms, log_ms, traits = data(backend)
    mixture = fit(terms, log_ms, traits, beliefs(backend))
    errors = 100 * np.nanmedian(np.abs(fold.errors), axis=0)
    return {
        "terms": list(terms_of(backend)[0]),
        "networks": names,
        "mean": _rounded(mixture.mean),
        "spread": _rounded(mixture.spread, 6),
        "width": round(fold.width(), 3),
        "settings": [_setting(each, mixture, index, errors[index]) for index, each in enumerate(settings)],
    }


def _setting(setting: Setting, mixture: Mixture, index: int, error_pct: float) -> dict[str, object]:
    return {
        "device": setting.device,
        "threads": setting.threads,
        "powersave": setting.powersave,
        "repeat": setting.repeat,
        "offset": round(float(mixture.offsets[index]), 4),
        "noise": round(float(mixture.noise[index]), 4),
        "error_pct": round(float(error_pct), 1),
        "factors": _rounded(mixture.factors[index], 3),
    }


def _rounded(values: Array, digits: int = 5) -> list[object]:
    return np.round(values, digits).tolist()  # type: ignore[no-any-return]


def main() -> None:
    """Write the parameters that ship."""
    document: dict[str, object] = {
        "made_by": "python -m secateur.profiles.latency.fit",
        "source": "Tencent/ncnn, benchmark/README.md, July 2026 (BSD-3-Clause); network shapes from benchmark/models",
    }
    for backend in ("cpu", "vulkan"):
        fold = leave_one_out(backend)
        document[backend] = population(backend, fold)
        errors = np.abs(fold.errors[np.isfinite(fold.log_ms)])
        print(
            f"{backend}: {len(errors)} predictions, median error {100 * np.median(errors):.1f} %, "
            f"{100 * np.mean(errors < 0.1):.0f} % within 10 %, intervals hold {100 * fold.coverage():.0f} %",
            file=sys.stderr,
        )
    with writing(Path(__file__).parent / "data" / "population.json") as temporary:
        temporary.write_text(json.dumps(document, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


if __name__ == "__main__":
    main()
