"""The model of all published devices: each is a positive factor for every term, drawn from one population.

    log ms[n, s] = offset[s] + log sum_j terms[n, s, j] exp(theta[s, j]) + bias[n] + noise
    theta[s] ~ Normal(covariates[s] @ B, Sigma)

Times add up, errors multiply. What one device tells of a term, all others inherit through B and Sigma, which are
estimated from them (empirical Bayes: the mode of the parameters, then Sigma and the noise from the modes and their
curvature, alternating; MacKay, Neural Computation 1992). `bias` is what a network adds on every device; it is unknown
for a new one. Student-t noise makes single wrong rows harmless. A new device needs few rows: B and Sigma stay, theta is
found.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Beliefs:
    """What is fixed before the fit: the spread of each quantity, all of logarithms."""

    mean: Array  # of B, (covariates, terms)
    mean_sd: tuple[float, ...] = (0.05, 0.1)  # of B's rows: constant, threads
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

    Terms are of shape (networks, settings, terms); a middle dimension of one stands for all settings.

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
        return _log_sum(terms, self.factors) + self.offsets

    def shares(self, terms: Array) -> Array:
        """Share of each term in the time, (networks, settings, terms)."""
        return _shares(terms, self.factors)

    def uncertainty(self, terms: Array, known: Array, degrees: float = 4.0) -> Array:
        """Variance of log milliseconds that stems from the factors alone, (networks, settings).

        Args:
            known: terms of the networks that the settings were fitted on.
        """
        weight = np.broadcast_to((degrees + 1) / (degrees + 3) / self.noise**2, (len(known), len(self.noise)))
        curvature = _curvature(self.shares(known), weight) + np.linalg.inv(self.spread)
        mine = self.shares(terms)
        return np.asarray(np.einsum("nsj,sjk,nsk->ns", mine, np.linalg.inv(curvature), mine))


def fit(terms: Array, log_ms: Array, covariates: Array, beliefs: Beliefs, rounds: int = 3) -> Mixture:
    """Fit a population.

    Args:
        terms: (networks, settings or 1, terms), milliseconds of the nominal device.
        log_ms: (networks, settings), NaN where nothing was measured.
        covariates: (settings, covariates).
    """
    count, settings = terms.shape[-1], log_ms.shape[1]
    state = _start(terms, log_ms, covariates, beliefs.mean)
    spread, noise = np.eye(count) * beliefs.factor_sd**2, np.full(settings, beliefs.noise_sd)
    for turn in range(rounds):
        problem = _Problem(terms, log_ms, covariates, beliefs, spread, noise, state.offsets)
        state = problem.mode(state)
        if turn < rounds - 1:
            spread, noise = problem.moments(state)
    return Mixture(state.mean, spread, state.factors, state.offsets, noise)


def adapt(population: Mixture, terms: Array, log_ms: Array, covariates: Array, beliefs: Beliefs) -> Mixture:
    """A new device of the population, from networks that were measured on it; shapes as in `fit`, one setting."""
    start = _start(terms, log_ms, covariates, population.mean)
    noise = np.array([float(np.median(population.noise))])
    frozen = replace(beliefs, mean=population.mean, mean_sd=(1e-6, 1e-6), network_sd=1e-6)
    state = _Problem(terms, log_ms, covariates, frozen, population.spread, noise, start.offsets).mode(start)
    return Mixture(population.mean, population.spread, state.factors, state.offsets, noise)


@dataclass(frozen=True)
class _State:
    factors: Array
    offsets: Array
    bias: Array
    mean: Array


def _start(terms: Array, log_ms: Array, covariates: Array, mean: Array) -> _State:
    factors = covariates @ mean
    offsets = np.asarray(np.nanmedian(log_ms - _log_sum(terms, factors), axis=0))
    return _State(factors, offsets, np.zeros(len(terms)), mean)


@dataclass(frozen=True)
class _Problem:
    """What the parameters have to explain, given the spread and the noise."""

    terms: Array
    log_ms: Array
    covariates: Array
    beliefs: Beliefs
    spread: Array
    noise: Array
    center: Array  # of the offsets, which are believed within 0.7 of it

    def mode(self, state: _State, steps: int = 30) -> _State:
        """The most probable parameters: Gauss-Newton steps, halved until they help."""
        surprise = self.surprise(state)
        for _ in range(steps):
            direction, before = self._direction(state), surprise
            for length in 0.5 ** np.arange(12):
                moved = _State(*(getattr(state, name) + length * step for name, step in direction.items()))
                surprise = self.surprise(moved)
                if surprise <= before:
                    break
            else:
                return state
            state = moved
            if before - surprise < 0.05:
                break
        return state

    def surprise(self, state: _State) -> float:
        """Minus the log probability, up to a constant."""
        nu, away = self.beliefs.degrees, state.factors - self.covariates @ state.mean
        return float(
            0.5 * (nu + 1) * np.log1p((self._rest(state) / self.noise) ** 2 / nu).sum()
            + 0.5 * np.einsum("sj,jk,sk->", away, self.precision, away)
            + ((state.offsets - self.center) ** 2).sum()
            + 0.5 * ((state.bias / self.beliefs.network_sd) ** 2).sum()
            + 0.5 * (((state.mean - self.beliefs.mean) / self._mean_sd) ** 2).sum()
        )

    def moments(self, state: _State) -> tuple[Array, Array]:
        """Spread of the factors and noise of each setting, from the modes and the curvature around them (Laplace)."""
        beliefs, shares = self.beliefs, _shares(self.terms, state.factors)
        unsure = np.linalg.inv(_curvature(shares, self._weight(self._rest(state))) + self.precision)
        away = state.factors - self.covariates @ state.mean
        floor = beliefs.settings_behind * beliefs.smallest_sd**2 * np.eye(away.shape[1])
        spread = (away.T @ away + unsure.sum(0) + floor) / (len(away) + beliefs.settings_behind)
        rest = self._rest(state) ** 2 + np.einsum("nsj,sjk,nsk->ns", shares, unsure, shares)
        found = np.maximum(1.48 * np.sqrt(np.nanmedian(np.where(self._known, rest, np.nan), axis=0)), 0.01)
        shrunk = np.exp((np.log(found) + np.log(found).mean()) / 2)
        return spread, np.maximum(shrunk, beliefs.least_noise)

    def _direction(self, state: _State) -> dict[str, Array]:
        """One Gauss-Newton step. Each setting's factors and offset meet those of others only in the biases and the
        mean, so they are eliminated setting by setting (a Schur complement)."""
        (networks, settings), (covariates, count) = self.log_ms.shape, state.mean.shape
        rest, away = self._rest(state), state.factors - self.covariates @ state.mean
        weight, pull = self._weight(rest), away @ self.precision
        design = np.concatenate([_shares(self.terms, state.factors), np.ones((networks, settings, 1))], -1)
        own = _curvature(design, weight)
        own[:, :count, :count] += self.precision
        own[:, count, count] += 2
        slope = np.einsum("ns,nsj->sj", weight * rest, design)
        slope[:, :count] -= pull
        slope[:, count] -= 2 * (state.offsets - self.center)

        mixed = np.zeros((settings, count + 1, networks + covariates * count))
        mixed[:, :, :networks] = np.einsum("ns,nsj->sjn", weight, design)
        mixed[:, :count, networks:] = -np.einsum("jk,sc->sjck", self.precision, self.covariates).reshape(
            settings, count, -1
        )
        spans = np.concatenate([np.full(networks, self.beliefs.network_sd), self._mean_sd.ravel()])
        shared = np.diag(1 / spans**2)
        shared[:networks, :networks] += np.diag(weight.sum(1))
        shared[networks:, networks:] += np.kron(self.covariates.T @ self.covariates, self.precision)
        common = -np.concatenate([state.bias, (state.mean - self.beliefs.mean).ravel()]) / spans**2
        common[:networks] += (weight * rest).sum(1)
        common[networks:] += (self.covariates.T @ pull).ravel()

        solved = np.linalg.solve(own, np.concatenate([mixed, slope[:, :, None]], -1))
        shared -= np.tensordot(mixed, solved[:, :, :-1], ((0, 1), (0, 1)))
        common -= np.tensordot(mixed, solved[:, :, -1], ((0, 1), (0, 1)))
        of_shared = np.linalg.solve(shared, common)
        of_own = solved[:, :, -1] - solved[:, :, :-1] @ of_shared
        return {
            "factors": of_own[:, :count],
            "offsets": of_own[:, count],
            "bias": of_shared[:networks],
            "mean": of_shared[networks:].reshape(covariates, count),
        }

    def _rest(self, state: _State) -> Array:
        """What is left of the measured logarithms; zero where nothing was measured."""
        expected = _log_sum(self.terms, state.factors) + state.offsets + state.bias[:, None]
        return np.where(self._known, np.nan_to_num(self.log_ms) - expected, 0.0)

    def _weight(self, rest: Array) -> Array:
        """Of each measurement: the further it is off, the less it counts (Student's t)."""
        nu = self.beliefs.degrees
        return np.asarray((nu + 1) / (nu + (rest / self.noise) ** 2) / self.noise**2 * self._known)

    @cached_property
    def precision(self) -> Array:
        return np.asarray(np.linalg.inv(self.spread), dtype=np.float64)

    @property
    def _known(self) -> NDArray[np.bool_]:
        return np.isfinite(self.log_ms)

    @property
    def _mean_sd(self) -> Array:
        """Of every entry of B."""
        rows = np.array(self.beliefs.mean_sd[: len(self.beliefs.mean)])
        return np.repeat(rows[:, None], self.beliefs.mean.shape[1], axis=1)


def _log_sum(terms: Array, factors: Array) -> Array:
    """(networks, settings)."""
    return np.asarray(np.log((terms * np.exp(factors)).sum(-1)))


def _shares(terms: Array, factors: Array) -> Array:
    parts = terms * np.exp(factors)
    return np.asarray(parts / parts.sum(-1, keepdims=True))


def _curvature(design: Array, weight: Array) -> Array:
    """Sum over networks of weight times the outer product, (settings, terms, terms)."""
    by_setting = design.transpose(1, 2, 0)
    return np.asarray((by_setting * weight.T[:, None, :]) @ by_setting.transpose(0, 2, 1))
