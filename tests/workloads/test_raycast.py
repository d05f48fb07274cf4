"""Rays meet solids where a signed distance says they do."""

import numpy as np
import pytest

from secateur.workloads.raycast import INTERVAL, SURFACE, Array, Vector, dot

SIZE = tuple(np.array([s]) for s in (0.5, 0.7, 0.4))


def rays(solid: str, count: int = 4000) -> tuple[Vector, Vector, Vector, Array, Array]:
    rng = np.random.default_rng(0)
    origin = rng.normal(size=(3, count))
    origin *= 3 / np.linalg.norm(origin, axis=0)
    direction = rng.uniform(-0.6, 0.6, (3, count)) - origin
    with np.errstate(invalid="ignore", divide="ignore"):
        enter, leave = INTERVAL[solid](tuple(origin), tuple(direction), SIZE)
    return tuple(origin), tuple(direction), SIZE, enter, leave


def inside(solid: str, point: Array) -> Array:
    """Positive inside, by the definition of the solid."""
    x, y, z = point
    sx, sy, sz = (s[0] for s in SIZE)
    radial = np.hypot(x, z)
    if solid == "box":
        return np.minimum.reduce([sx - abs(x), sy - abs(y), sz - abs(z)])
    if solid == "sphere":
        return sx - np.linalg.norm(point, axis=0)
    if solid == "cylinder":
        return np.minimum(sx - radial, sy - abs(y))
    return np.minimum(sx * (sy - y) / (2 * sy) - radial, sy + y)


@pytest.mark.parametrize("solid", INTERVAL)
def test_a_ray_is_inside_exactly_between_entering_and_leaving(solid: str) -> None:
    origin, direction, _, enter, leave = rays(solid)
    hit = enter < leave
    assert 0.1 < hit.mean() < 0.9
    for t in np.linspace(0, 2, 101):
        value = inside(solid, np.stack(origin) + t * np.stack(direction))
        said = hit & (enter < t) & (t < leave)
        clear = np.abs(value) > 1e-9
        assert np.array_equal(said[clear], value[clear] > 0)


@pytest.mark.parametrize("solid", INTERVAL)
def test_surfaces_have_unit_normals_that_point_outwards(solid: str) -> None:
    origin, direction, size, enter, leave = rays(solid)
    hit = enter < leave
    point = (np.stack(origin) + enter * np.stack(direction))[:, hit]
    normal, _ = SURFACE[solid](tuple(point), size)
    assert np.allclose(dot(normal, normal), 1)
    assert (dot(normal, tuple(np.stack(direction)[:, hit])) < 1e-9).all(), "a ray enters against the normal"
    assert (inside(solid, point + 1e-4 * np.stack(normal)) < 0).all()
    assert (inside(solid, point - 1e-4 * np.stack(normal)) > 0).mean() > 0.99
