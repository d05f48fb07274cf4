"""Predictions for devices whose figures were published, and for new ones that are like them.

    model = published("cpu").device("Raspberry Pi 5 Broadcom BCM2712", threads=4)
    model.predict(read_onnx("model.onnx")).ms

    published("cpu").adapt([(read_onnx("a.onnx"), 12.3), ...], threads=4)    # a device that is in no table

The parameters lie in `data/population.json`, written by `python -m secateur.profiles.latency.fit`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from secateur.core.errors import DeviceError
from secateur.profiles.latency.estimate import Estimate
from secateur.profiles.latency.mixture import Beliefs, Mixture, adapt
from secateur.profiles.latency.operators import FAMILIAR, Operator
from secateur.profiles.latency.tables import Setting, networks
from secateur.profiles.latency.terms import CPU, GPU, covariates, cpu_terms, gpu_terms, prior

Backend = Literal["cpu", "vulkan"]
Array = NDArray[np.float64]
NETWORK_SD = 0.08
"""What a network adds on every device beyond what its shapes tell, in logarithms: part of every interval."""
UNFAMILIAR_SD = 0.7
"""The same, for time in kinds of operators that no published network has."""


def terms_of(backend: Backend, threads: int = 1) -> tuple[tuple[str, ...], Callable[[Sequence[Operator]], Array]]:
    """(names, function) of a backend's terms."""
    return (CPU, partial(cpu_terms, threads=threads)) if backend == "cpu" else (GPU, gpu_terms)


@cache
def known(backend: Backend, threads: int = 1) -> Array:
    """The terms of the published networks, in the order of their names, (networks, 1, terms)."""
    _, count = terms_of(backend, threads)
    return np.stack([count(networks()[name]) for name in sorted(networks())])[:, None]


def beliefs(backend: Backend) -> Beliefs:
    """What is believed before the fit, see `mixture`."""
    names, _ = terms_of(backend)
    if backend == "cpu":
        return Beliefs(prior(names, threads=True), mean_sd=(0.02, 0.03), factor_sd=0.7)
    return Beliefs(
        prior(names, threads=False), mean_sd=(0.05,), network_sd=0.1, factor_sd=1.0, smallest_sd=0.3, degrees=2.0
    )


@dataclass(frozen=True)
class DeviceModel:
    """One setting of one device, ready to predict.

    `width` scales standard deviations so that nine of ten published figures of left-out networks lie inside.
    `error_pct` is the median error on left-out networks, None for a device that was adapted here.
    """

    backend: Backend
    threads: int
    mixture: Mixture
    known: Array
    width: float
    error_pct: float | None

    def predict(self, operators: Sequence[Operator]) -> Estimate:
        """Latency of a model for one sample."""
        names, count = terms_of(self.backend, self.threads)
        terms = count(operators)[None, None]
        log_ms, shares = float(self.mixture.predict(terms)[0, 0]), self.mixture.shares(terms)[0, 0]
        spread = float(self.spread(terms)[0])
        unfamiliar = [operator for operator in operators if operator.kind not in FAMILIAR]
        if unfamiliar:
            share = float(np.exp(self.mixture.predict(count(unfamiliar)[None, None])[0, 0] - log_ms))
            spread = float(np.hypot(spread, UNFAMILIAR_SD * min(share, 1.0)))
        half, ms = self.width * spread, float(np.exp(log_ms))
        likely = 100 * 0.6745 / 1.645 * half  # half of the errors of a normal distribution are smaller
        error = max(likely, self.error_pct) if self.error_pct is not None else likely
        return Estimate(
            ms,
            ms * float(np.exp(-half)),
            ms * float(np.exp(half)),
            error,
            dict(zip(names, shares.tolist(), strict=True)),
        )

    def layers(self, operators: Sequence[Operator]) -> list[float]:
        """Milliseconds of each operator; they sum to the prediction."""
        _, count = terms_of(self.backend, self.threads)
        scale, factors = np.exp(self.mixture.offsets[0]), np.exp(self.mixture.factors[0])
        return [float(scale * (count([operator]) @ factors)) for operator in operators]

    def parts(self, operators: Sequence[Operator]) -> list[float]:
        """What `whole` takes the sum of."""
        return self.layers(operators)

    def whole(self, sums: float) -> float:
        """Milliseconds of a model whose layers take so many together."""
        return sums

    def spread(self, terms: Array) -> Array:
        """Standard deviation of log milliseconds before scaling, (networks,)."""
        return spread(self.mixture, terms, self.known)[:, 0]


def spread(mixture: Mixture, terms: Array, known: Array) -> Array:
    """Standard deviation of log milliseconds, (networks, settings): noise, network and factors."""
    return np.asarray(np.sqrt(mixture.noise**2 + NETWORK_SD**2 + mixture.uncertainty(terms, known)))


@dataclass(frozen=True)
class Population:
    """All settings of a backend, fitted together."""

    backend: Backend
    mixture: Mixture
    settings: tuple[Setting, ...]
    errors_pct: tuple[float, ...]
    width: float

    def device(self, name: str, threads: int | None = None, powersave: int | None = None) -> DeviceModel:
        """The setting of a device whose name begins like this; with most threads unless said otherwise.

        Raises:
            DeviceError: no such device or setting.
        """
        same = [
            index
            for index, each in enumerate(self.settings)
            if each.device.startswith(name) and threads in (None, each.threads) and powersave in (None, each.powersave)
        ]
        if not same:
            raise DeviceError(
                f'no published {self.backend} latency of "{name}" with {threads or "any"} threads',
                "the devices are listed in profiles/latency/data/population.json",
            )
        best = max(same, key=lambda index: (self.settings[index].threads, -self.settings[index].repeat))
        mixture = Mixture(
            self.mixture.mean, self.mixture.spread, self.mixture.factors[[best]], self.mixture.offsets[[best]],
            self.mixture.noise[[best]],
        )  # fmt: skip
        threads = self.settings[best].threads
        return DeviceModel(
            self.backend, threads, mixture, known(self.backend, threads), self.width, self.errors_pct[best]
        )

    def adapt(self, measured: Sequence[tuple[Sequence[Operator], float]], threads: int = 1) -> DeviceModel:
        """A device that is in no table, from a few models measured on it: what they do not tell, the others do.

        Args:
            measured: (operators, milliseconds) of each; one is enough, five are good.

        Raises:
            DeviceError: nothing was measured, or a latency is not positive.
        """
        if not measured or any(not ms > 0 for _, ms in measured):
            raise DeviceError("a device needs at least one measured latency above zero", "measure a model on it")
        _, count = terms_of(self.backend, threads)
        terms = np.stack([count(operators) for operators, _ in measured])[:, None]
        log_ms = np.log([[ms] for _, ms in measured])
        setting = covariates([threads] if self.backend == "cpu" else None, 1)
        mixture = adapt(self.mixture, terms, log_ms, setting, beliefs(self.backend))
        return DeviceModel(self.backend, threads, mixture, terms, self.width, None)


@cache
def published(backend: Backend) -> Population:
    """The population of a backend, `"cpu"` or `"vulkan"`, as it ships."""
    text = (resources.files("secateur.profiles.latency") / "data" / "population.json").read_text(encoding="utf-8")
    entry = json.loads(text)[backend]
    rows = entry["settings"]
    mixture = Mixture(
        np.array(entry["mean"]), np.array(entry["spread"]), np.array([row["factors"] for row in rows]),
        np.array([row["offset"] for row in rows]), np.array([row["noise"] for row in rows]),
    )  # fmt: skip
    settings = tuple(Setting(row["device"], backend, row["threads"], row["powersave"], row["repeat"]) for row in rows)
    return Population(backend, mixture, settings, tuple(row["error_pct"] for row in rows), entry["width"])
