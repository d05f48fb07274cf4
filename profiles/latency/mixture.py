"""The model of all published devices: each is a positive factor for every term, drawn from one population.

    log ms[n, s] = offset[s] + log sum_j terms[n, j] exp(theta[s, j]) + bias[n] + noise
    theta[s] ~ Normal(covariates[s] @ B, Sigma)

Times add up, errors multiply. What one device tells of a term, all others inherit through B and Sigma, which are
estimated from them (empirical Bayes: the mode of the parameters, then Sigma from the modes and their curvature,
alternating; MacKay, Neural Computation 1992). `bias` is what a network adds on every device; it is unknown for a new
one. Student-t noise makes single wrong rows harmless. A new device needs few rows: B and Sigma stay, theta is found.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Beliefs:
    """What is fixed before the fit: the spread of each quantity, all of logarithms."""

    mean: Array  # of B, (covariates, terms)
    mean_sd: tuple[float, float] = (0.05, 0.1)  # of B's rows: constant, threads
    network_sd: float = 0.04
    factor_sd: float = 0.5
    smallest_sd: float = 0.15
    settings_behind: float = 10.0  # weight of `smallest_sd`, in settings
    degrees: float = 4.0  # of freedom of the noise
    noise_sd: float = 0.08
    least_noise: float = 0.03


@dataclass(frozen=True)
class Mixture:
    """A fitted population.

    Attributes:
        mean: B, (covariates, terms).
        spread: Sigma, (terms, terms).
        factors: theta, (settings, terms).
        offsets, noise: (settings,).
    """

    mean: Array
    spread: Array
    factors: Array
    offsets: Array
    noise: Array

    def predict(self, terms: Array) -> Array:
        """Log milliseconds, (networks, settings)."""
        return np.log(terms @ np.exp(self.factors).T) + self.offsets

    def shares(self, terms: Array) -> Array:
        """Share of each term in the time, (networks, settings, terms)."""
        parts = terms[:, None, :] * np.exp(self.factors)[None]
        return np.asarray(parts / parts.sum(-1, keepdims=True))

    def uncertainty(self, terms: Array, known: Array, degrees: float = 4.0) -> Array:
        """Variance of log milliseconds that stems from the factors alone, (networks, settings).

        Args:
            known: terms of the networks that the settings were fitted on.
        """
        shares, precision = self.shares(known), np.linalg.inv(self.spread)
        weight = (degrees + 1) / (degrees + 3) / self.noise**2
        curvature = np.einsum("nsj,nsk,s->sjk", shares, shares, weight) + precision
        mine = self.shares(terms)
        return np.asarray(np.einsum("nsj,sjk,nsk->ns", mine, np.linalg.inv(curvature), mine))


def fit(terms: Array, log_ms: Array, covariates: Array, beliefs: Beliefs, rounds: int = 4) -> Mixture:
    """Fit a population.

    Args:
        terms: (networks, terms), milliseconds of the nominal device.
        log_ms: (networks, settings), NaN where nothing was measured.
        covariates: (settings, covariates).
    """
    settings, count = log_ms.shape[1], terms.shape[1]
    center = beliefs.mean
    state = _State(
        deviations=np.zeros((settings, count)),
        bias=np.zeros(len(terms)),
        mean=center.copy(),
        offsets=_start(terms, log_ms, covariates @ center),
    )
    spread, noise = np.eye(count) * beliefs.factor_sd**2, np.full(settings, beliefs.noise_sd)
    for turn in range(rounds):
        state = _mode(state, terms, log_ms, covariates, beliefs, spread, noise)
        if turn < rounds - 1:
            spread, noise = _moments(state, terms, log_ms, covariates, beliefs, spread, noise)
    return Mixture(state.mean, spread, state.deviations + covariates @ state.mean, state.offsets, noise)


def adapt(population: Mixture, terms: Array, log_ms: Array, covariates: Array, beliefs: Beliefs) -> Mixture:
    """A new device of the population, from networks that were measured on it; shapes as in `fit`, one setting."""
    count = terms.shape[1]
    start = _State(
        np.zeros((1, count)), np.zeros(len(terms)), population.mean, _start(terms, log_ms, covariates @ population.mean)
    )
    noise = np.array([float(np.median(population.noise))])
    frozen = replace(beliefs, mean=population.mean, mean_sd=(1e-6, 1e-6), network_sd=1e-6)
    state = _mode(start, terms, log_ms, covariates, frozen, population.spread, noise)
    return Mixture(population.mean, population.spread, state.deviations + covariates @ state.mean, state.offsets, noise)


@dataclass(frozen=True)
class _State:
    deviations: Array  # of theta from its mean
    bias: Array
    mean: Array
    offsets: Array


def _start(terms: Array, log_ms: Array, factors: Array) -> Array:
    return np.asarray(np.nanmedian(log_ms - np.log(terms @ np.exp(factors).T), axis=0))


def _mode(
    start: _State, terms: Array, log_ms: Array, covariates: Array, beliefs: Beliefs, spread: Array, noise: Array
) -> _State:
    """The most probable parameters, given the spread and the noise."""
    import torch

    def tensor(values: Any) -> torch.Tensor:
        return torch.tensor(np.asarray(values), dtype=torch.float64)

    known, given = torch.tensor(np.isfinite(log_ms)), tensor(np.nan_to_num(log_ms))
    features, z, sd, precision = tensor(terms), tensor(covariates), tensor(noise), tensor(np.linalg.inv(spread))
    center, center_sd = tensor(beliefs.mean), tensor(beliefs.mean_sd[: len(beliefs.mean)])[:, None]
    offsets, nu = tensor(start.offsets), beliefs.degrees
    unknown = [
        tensor(value).requires_grad_()
        for value in (start.deviations, start.bias, start.mean, np.zeros_like(start.offsets))
    ]
    search = torch.optim.LBFGS(unknown, max_iter=40, history_size=15, line_search_fn="strong_wolfe")

    def surprise() -> Any:
        search.zero_grad()
        deviations, bias, mean, shift = unknown
        expected = torch.log(features @ torch.exp(deviations + z @ mean).T) + offsets + shift + bias[:, None]
        scaled = (given - expected) / sd
        loss = 0.5 * (nu + 1) * (torch.log1p(scaled**2 / nu) * known).sum()
        loss = loss + 0.5 * (deviations @ precision * deviations).sum() + shift.square().sum()
        loss = loss + 0.5 * (bias / beliefs.network_sd).square().sum()
        loss = loss + 0.5 * ((mean - center) / center_sd).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    search.step(surprise)  # type: ignore[no-untyped-call]
    deviations, bias, mean, shift = (value.detach().numpy() for value in unknown)
    return _State(deviations, bias, mean, start.offsets + shift)


def _moments(
    state: _State, terms: Array, log_ms: Array, covariates: Array, beliefs: Beliefs, spread: Array, noise: Array
) -> tuple[Array, Array]:
    """Spread of the factors and noise of each setting, by the modes and the curvature around them (Laplace)."""
    mixture = Mixture(state.mean, spread, state.deviations + covariates @ state.mean, state.offsets, noise)
    rest = log_ms - mixture.predict(terms) - state.bias[:, None]
    scaled, nu = np.nan_to_num(rest) / noise, beliefs.degrees
    weight = (nu + 1) / (nu + scaled**2) * np.isfinite(rest) / noise**2
    shares = mixture.shares(terms)
    curvature = np.einsum("ns,nsj,nsk->sjk", weight, shares, shares) + np.linalg.inv(spread)
    settings, count = state.deviations.shape
    scatter = state.deviations.T @ state.deviations + np.linalg.inv(curvature).sum(0)
    floor = beliefs.settings_behind * beliefs.smallest_sd**2 * np.eye(count)
    found = np.maximum(1.48 * np.nanmedian(np.abs(rest), axis=0), 0.01)
    shrunk = np.exp((np.log(found) + np.log(found).mean()) / 2)
    return (scatter + floor) / (settings + beliefs.settings_behind), np.maximum(shrunk, beliefs.least_noise)
