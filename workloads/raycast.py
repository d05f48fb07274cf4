"""Analytic ray casting of convex solids: where a ray enters and leaves, and the surface it meets there.

Every solid is centred at the origin of its own frame, with half extents `size = (sx, sy, sz)`: a box, a sphere of
radius sx, an upright cylinder of radius sx and half height sy, a cone of base radius sx with its apex at +sy.
A vector is a tuple of three arrays (x, y, z), so that origins and directions broadcast against each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Vector = tuple[Array, ...]
Interval = tuple[Array, Array]
"""Ray parameters (enter, leave); the ray misses where `enter > leave`."""
Surface = tuple[Vector, Array]
"""(outward unit normal, number of the smooth face)."""


def box_interval(origin: Vector, direction: Vector, size: Vector) -> Interval:
    """Slab test: the latest entry and the earliest exit of the three pairs of planes."""
    enter, leave = np.array([-np.inf, np.inf], np.float32)
    for o, d, s in zip(origin, direction, size, strict=True):
        inverse = 1 / d
        middle, reach = -o * inverse, s * np.abs(inverse)
        enter, leave = np.maximum(enter, middle - reach), np.minimum(leave, middle + reach)
    return enter, leave


def box_surface(point: Vector, size: Vector) -> Surface:
    """Six faces, numbered 2·axis + (1 on the positive side)."""
    scaled = np.stack([p / s for p, s in zip(point, size, strict=True)])
    axis = np.abs(scaled).argmax(axis=0)
    positive = np.take_along_axis(scaled, axis[None], axis=0)[0] > 0
    sign = np.where(positive, np.float32(1), np.float32(-1))
    return tuple(np.where(axis == i, sign, np.float32(0)) for i in range(3)), 2 * axis + positive


def sphere_interval(origin: Vector, direction: Vector, size: Vector) -> Interval:
    """Roots of |o + t d|² = r²."""
    return _roots(dot(direction, direction), dot(origin, direction), dot(origin, origin) - size[0] ** 2)


def sphere_surface(point: Vector, size: Vector) -> Surface:
    """One face."""
    return normalised(point), np.zeros(point[0].shape, np.intp)


def cylinder_interval(origin: Vector, direction: Vector, size: Vector) -> Interval:
    """The infinite cylinder between two planes."""
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    enter, leave = _roots(dx * dx + dz * dz, ox * dx + oz * dz, ox * ox + oz * oz - size[0] ** 2)
    inverse = 1 / dy
    middle, reach = -oy * inverse, size[1] * np.abs(inverse)
    return np.maximum(enter, middle - reach), np.minimum(leave, middle + reach)


def cylinder_surface(point: Vector, size: Vector) -> Surface:
    """Face 0 is the side, 1 the lower and 2 the upper cap."""
    (px, py, pz), (radius, half, _) = point, size
    cap = np.abs(py) / half > np.hypot(px, pz) / radius
    zero = np.float32(0)
    normal = np.where(cap, zero, px / radius), np.where(cap, np.sign(py), zero), np.where(cap, zero, pz / radius)
    return normalised(normal), np.where(cap, 1 + (py > 0), 0)


def cone_interval(origin: Vector, direction: Vector, size: Vector) -> Interval:
    """Of the two crossings with the double cone and the one with the base plane, those that bound the solid."""
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    radius, half, _ = size
    slope = (radius / (2 * half)) ** 2
    below = half - oy  # height left to the apex
    a = dx * dx + dz * dz - slope * dy * dy
    b = ox * dx + oz * dz + slope * below * dy
    c = ox * ox + oz * oz - slope * below * below
    root = np.sqrt(b * b - a * c)
    enter, leave = np.array([np.inf, -np.inf], np.float32)
    for t in ((-b - root) / a, (-b + root) / a):
        valid = np.abs(oy + t * dy) <= half
        enter, leave = np.where(valid, np.minimum(enter, t), enter), np.where(valid, np.maximum(leave, t), leave)
    base = (-half - oy) / dy
    valid = (ox + base * dx) ** 2 + (oz + base * dz) ** 2 <= radius**2
    return np.where(valid, np.minimum(enter, base), enter), np.where(valid, np.maximum(leave, base), leave)


def cone_surface(point: Vector, size: Vector) -> Surface:
    """Face 0 is the side, 1 the base."""
    (px, py, pz), (radius, half, _) = point, size
    distance = np.hypot(px, pz)
    base = half + py < radius * (half - py) / (2 * half) - distance  # nearer to the base plane than to the side
    zero = np.float32(0)
    normal = (
        np.where(base, zero, px),
        np.where(base, np.float32(-1), distance * radius / (2 * half)),
        np.where(base, zero, pz),
    )
    return normalised(normal), base.astype(np.intp)


INTERVAL: dict[str, Callable[[Vector, Vector, Vector], Interval]] = {
    "box": box_interval,
    "sphere": sphere_interval,
    "cylinder": cylinder_interval,
    "cone": cone_interval,
}
SURFACE: dict[str, Callable[[Vector, Vector], Surface]] = {
    "box": box_surface,
    "sphere": sphere_surface,
    "cylinder": cylinder_surface,
    "cone": cone_surface,
}


def dot(a: Vector, b: Vector) -> Array:
    result: Array = a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
    return result


def normalised(vector: Vector) -> Vector:
    length = np.sqrt(dot(vector, vector))
    return tuple(v / length for v in vector)


def rotated(matrix: Array, vector: Vector) -> Vector:
    """Rows of `matrix` [..., 3, 3] times the vector; the leading dimensions broadcast."""
    return tuple(dot((matrix[..., i, 0], matrix[..., i, 1], matrix[..., i, 2]), vector) for i in range(3))


def _roots(a: Array, b: Array, c: Array) -> Interval:
    """Roots of a t² + 2 b t + c = 0 with a > 0; an empty interval where there are none."""
    discriminant = b * b - a * c
    root = np.sqrt(np.maximum(discriminant, 0))
    enter = np.where(discriminant > 0, (-b - root) / a, np.float32(np.inf))
    return enter, np.where(discriminant > 0, (-b + root) / a, np.float32(-np.inf))
