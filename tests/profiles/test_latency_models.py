"""The population of devices: recovers what data were made from, tells a new device what its rows do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from secateur.core.errors import DeviceError
from secateur.profiles.latency import Operator, published
from secateur.profiles.latency.fit_soft_core import features, latency
from secateur.profiles.latency.fit_soft_core import leave_one_out as leave_cores_out
from secateur.profiles.latency.mixture import Beliefs, _Problem, _start, adapt, fit
from secateur.profiles.latency.soft_core import CORES, SoftCore, parameters
from secateur.profiles.latency.tables import networks, soft_core_rows

BELIEFS = Beliefs(np.zeros((1, 3)), mean_sd=(0.3, 0.3))


def made_up(seed: int, settings: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(terms, log ms, factors) of devices whose second and third factor go together."""
    random = np.random.default_rng(seed)
    terms = random.gamma(1.0, 1.0, (14, 3)) + 0.05
    factors = random.normal(0, 0.3, (settings, 3))
    factors[:, 2] = factors[:, 1] + 1.0
    log_ms = np.log(terms @ np.exp(factors).T) + random.normal(0, 3, settings)
    return terms[:, None], log_ms, factors


def test_exact_data_are_recovered_and_one_wrong_row_changes_little() -> None:
    terms, log_ms, _ = made_up(0)
    known = np.ones((log_ms.shape[1], 1))
    found = fit(terms, log_ms, known, BELIEFS)
    assert np.abs(found.predict(terms) - log_ms).max() < 0.1
    wrong = log_ms.copy()
    wrong[3, 2] += 2.0
    robust = fit(terms, wrong, known, BELIEFS)
    rest = np.delete(np.arange(len(terms)), 3)
    assert np.abs(robust.predict(terms) - log_ms)[rest, 2].max() < 0.15


def test_the_fit_is_a_minimum() -> None:
    terms, log_ms, _ = made_up(2)
    log_ms[0, 1] = np.nan
    known = np.ones((log_ms.shape[1], 1))
    start = _start(terms, log_ms, known, BELIEFS.mean)
    problem = _Problem(terms, log_ms, known, BELIEFS, 0.25 * np.eye(3), np.full(12, 0.05), start.offsets)
    found = problem.mode(start)
    random, least = np.random.default_rng(0), problem.surprise(found)
    for name in ("factors", "offsets", "bias", "mean"):
        value = getattr(found, name)
        for size in (0.02, 0.1):
            moved = replace(found, **{name: value + size * random.standard_normal(value.shape)})
            assert problem.surprise(moved) > least


def test_a_new_device_inherits_what_its_rows_do_not_tell() -> None:
    terms, log_ms, _ = made_up(1, 30)
    known = np.ones((29, 1))
    population = fit(terms, log_ms[:, :29], known, BELIEFS)
    rows = [0, 5]
    device = adapt(population, terms[rows], log_ms[rows, 29:], np.ones((1, 1)), BELIEFS)
    error = np.abs(device.predict(terms)[:, 0] - log_ms[:, 29])
    total = np.log(terms.sum((1, 2)))
    proportional = np.abs(total + np.mean((log_ms[:, 29] - total)[rows]) - log_ms[:, 29])
    assert np.median(error) < 0.6 * np.median(proportional)


def test_few_rows_of_a_device_do_nearly_as_well_as_all() -> None:
    population = published("cpu")
    device = population.device("Raspberry Pi 4", threads=1)
    truth = {name: device.predict(operators).ms for name, operators in networks().items()}
    few = population.adapt([(networks()[name], 2 * truth[name]) for name in ("mobilenet", "resnet18", "squeezenet")])
    ratio = np.array([few.predict(operators).ms / truth[name] for name, operators in networks().items()])
    assert np.median(np.abs(ratio / 2 - 1)) < 0.1
    assert few.error_pct is None
    with pytest.raises(DeviceError, match="at least one"):
        population.adapt([])


def test_what_is_unlike_all_networks_is_less_certain() -> None:
    device = published("cpu").device("Raspberry Pi 4", threads=4)

    def ratio(operators: list[Operator]) -> float:
        found = device.predict(operators)
        assert found.low < found.ms < found.high
        return found.high / found.low

    usual = ratio(list(networks()["mobilenet_v2"]))
    product = Operator("matmul", ((64, 197, 64), (64, 64, 197)), (64, 197, 197))
    assert ratio([*networks()["mobilenet_v2"], *[product] * 40]) > 1.3 * usual
    assert ratio([Operator("lrn", ((64, 56, 56),), (64, 56, 56))] * 5) > 1.1 * usual


def test_layers_sum_to_the_prediction_and_grow_with_the_network() -> None:
    for backend, name in (("cpu", "Raspberry Pi 5"), ("vulkan", "NVIDIA Jetson Nano")):
        device, operators = published(backend).device(name), networks()["resnet18"]  # type: ignore[arg-type]
        assert sum(device.layers(operators)) == pytest.approx(device.predict(operators).ms)
        assert device.predict(operators[:-5]).ms < device.predict(operators).ms


def test_the_shipped_errors_are_within_what_is_promised() -> None:
    errors = np.array(published("cpu").errors_pct)
    assert np.median(errors) < 8
    assert parameters().error_pct <= 10


def test_a_soft_core_is_unsure_of_what_it_does_not_have() -> None:
    plain = networks()["resnet50"]
    attention = Operator("matmul", ((64, 8), (8, 64)), (64, 64))
    core = SoftCore("B4096", 281e6, "ZCU102")
    sure, unsure = core.predict(plain), core.predict([*plain, attention])
    assert sure.error_pct < 10 < 50 <= unsure.error_pct
    assert unsure.high / unsure.low > 5 > sure.high / sure.low


def test_soft_core_constants_keep_their_meaning() -> None:
    known = parameters()
    assert 0.3 < known.use <= 1
    assert known.bandwidth <= 19.2e9
    assert known.depthwise_slowdown >= 0.5
    assert all(start > 0 for start in known.start_ms.values())
    for core in CORES:
        model, operators = SoftCore(core, 300e6, "ZCU104"), networks()["resnet50"]
        macs = sum(operator.macs for operator in operators)
        assert model.predict(operators).ms > 1e3 * macs / model.peak_macs
    with pytest.raises(DeviceError, match="B9999"):
        SoftCore("B9999", 1e8)


def test_a_left_out_network_takes_no_part() -> None:
    rows, predicted = leave_cores_out()
    table = np.array([*map(features, rows)])
    assert np.median(np.abs(predicted / [row.ms for row in rows] - 1)) <= 0.1
    constants = np.array([0.8, 1.0, 1e10, 300.0, 0.5, 0.5, 0.005])
    assert latency(constants, table).shape == (len(soft_core_rows()),)
    slower = constants * [0.5, 1, 1, 1, 1, 1, 1]
    assert (latency(slower, table) > latency(constants, table)).all()


def test_published_settings_are_found_by_the_beginning_of_their_name() -> None:
    population = published("cpu")
    assert population.device("Raspberry Pi 4", threads=1).error_pct is not None
    with pytest.raises(DeviceError, match="no published cpu latency"):
        population.device("Raspberry Pi 4", threads=3)
