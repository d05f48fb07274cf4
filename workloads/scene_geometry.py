"""What stands in a scene: a room, solids on its floor, a camera, a light. Drawn from one seed per scene.

World frame: x right, y up, z towards the camera, metres; the floor is y = 0, the camera stands above the origin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secateur.workloads.raycast import Array

CLASSES = ("wall", "floor", "box", "sphere", "cylinder", "cone", "panel")
SOLID = {"box": "box", "sphere": "sphere", "cylinder": "cylinder", "cone": "cone", "panel": "box"}
"""Which solid is cast for each class of object."""
KINDS = tuple(SOLID)
SLOTS = 5
"""Objects a scene has at most."""
PLANES = 4
"""Floor, back wall, left wall, right wall."""


@dataclass(frozen=True)
class Scenes:
    """Parameters of N scenes, one row each. Surfaces 0..SLOTS-1 are objects, the PLANES planes follow."""

    kind: Array  # [N, SLOTS] index into KINDS, -1 where the slot is empty
    centre: Array  # [N, SLOTS, 3]
    pose: Array  # [N, SLOTS, 3, 3] local to world
    size: Array  # [N, SLOTS, 3] half extents
    plane_normal: Array  # [N, PLANES, 3] towards the inside of the room
    plane_offset: Array  # [N, PLANES] normal · point on the plane
    camera: Array  # [N, 3]
    pitch: Array  # [N] radians, positive looks down
    light: Array  # [N, 3] unit vector towards the light
    ambient: Array  # [N] share of the light that comes from everywhere
    colours: Array  # [N, SLOTS + PLANES, 2, 3] the two albedos of each surface
    frequency: Array  # [N, SLOTS + PLANES, 3] of the texture along its three axes, radians per metre
    phase: Array  # [N, SLOTS + PLANES, 3]
    contrast: Array  # [N, SLOTS + PLANES] 0 plain, below 1 soft, large sharp


def draw(seeds: range) -> Scenes:
    """Draw one scene for each seed; the same seed always gives the same scene."""
    rows = [_draw_one(np.random.default_rng([20, seed])) for seed in seeds]
    columns = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return Scenes(**{name: v if v.dtype.kind == "i" else v.astype(np.float32) for name, v in columns.items()})


def _draw_one(rng: np.random.Generator) -> dict[str, Array]:
    yaw = np.deg2rad(rng.uniform(-35, 35))
    azimuth, elevation = np.deg2rad(rng.uniform(-70, 70)), np.deg2rad(rng.uniform(35, 70))
    horizontal = np.cos(elevation)
    return {
        **_draw_objects(rng),
        **_draw_room(rng, yaw),
        **_draw_textures(rng),
        "camera": np.array([0, rng.uniform(1.35, 1.65), 0]),
        "pitch": np.deg2rad(np.asarray(rng.uniform(12, 20))),
        "light": np.array([horizontal * np.sin(azimuth), np.sin(elevation), horizontal * np.cos(azimuth)]),
        "ambient": np.asarray(rng.uniform(0.25, 0.45)),
    }


def _draw_room(rng: np.random.Generator, yaw: float) -> dict[str, Array]:
    back = np.array([np.sin(yaw), 0, np.cos(yaw)])
    right = np.array([np.cos(yaw), 0, -np.sin(yaw)])
    normals = np.stack([np.array([0.0, 1, 0]), back, right, -right])
    offsets = np.array([0, -rng.uniform(5, 8), -rng.uniform(2.5, 5), -rng.uniform(2.5, 5)])
    return {"plane_normal": normals, "plane_offset": offsets}


def _draw_objects(rng: np.random.Generator) -> dict[str, Array]:
    """Two to SLOTS solids that stand on the floor in front of the camera and do not touch one another."""
    kind = np.full(SLOTS, -1)
    centre, size = np.zeros((SLOTS, 3)), np.ones((SLOTS, 3))
    pose = np.tile(np.eye(3), (SLOTS, 1, 1))
    places: list[tuple[float, float, float]] = []
    for slot in range(rng.integers(2, SLOTS + 1)):
        kind[slot] = rng.integers(len(KINDS))
        size[slot], pose[slot], half_height, radius = _draw_solid(rng, KINDS[kind[slot]])
        for _ in range(20):
            distance, bearing = rng.uniform(2.0, 4.6), np.deg2rad(rng.uniform(-27, 27))
            x, z = distance * np.sin(bearing), -distance * np.cos(bearing)
            if all(np.hypot(x - px, z - pz) > radius + r + 0.05 for px, pz, r in places):
                places.append((x, z, radius))
                centre[slot] = x, half_height, z
                break
        else:
            kind[slot] = -1
    return {"kind": kind, "centre": centre, "pose": pose, "size": size}


def _draw_solid(rng: np.random.Generator, name: str) -> tuple[Array, Array, float, float]:
    """(half extents, pose, height of the centre, radius of the footprint)."""
    a, b, c = rng.uniform(0.24, 0.52, 3)
    turn = _turn(1, rng.uniform(0, 2 * np.pi))
    if name == "sphere":
        return np.array([a, a, a]), turn, a, a
    if name == "cylinder":
        a, b = 0.7 * a, b + 0.1
        if rng.random() < 0.35:
            return np.array([a, b, a]), turn @ _turn(0, np.pi / 2), a, float(np.hypot(a, b))
        return np.array([a, b, a]), turn, b, a
    if name == "cone":
        return np.array([a, b + 0.1, a]), turn, b + 0.1, a
    if name == "panel":
        lean = rng.uniform(0.1, 0.6)
        width, height, depth = a + 0.1, b + 0.25, 0.03
        rise = height * np.cos(lean) + depth * np.sin(lean)
        footprint = np.hypot(width, height * np.sin(lean) + depth)
        facing = _turn(1, rng.uniform(-0.9, 0.9))
        return np.array([width, height, depth]), facing @ _turn(0, -lean), rise, float(footprint)
    return np.array([a, 0.8 * b, c]), turn, 0.8 * b, float(np.hypot(a, c))


def _turn(axis: int, angle: float) -> Array:
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = np.cos(angle)
    matrix[j, i], matrix[i, j] = np.sin(angle), -np.sin(angle)
    return matrix


def _draw_textures(rng: np.random.Generator) -> dict[str, Array]:
    """Plain, checker, stripes or soft blobs: one formula, 0.5 + contrast · Π sin(frequency · p + phase)."""
    count = SLOTS + PLANES
    frequency = np.zeros((count, 3))
    phase = np.full((count, 3), np.pi / 2)
    contrast = np.zeros(count)
    base = rng.uniform(0.25, 1.0, (count, 3))
    other = np.clip(base * rng.uniform(0.35, 0.8) + rng.uniform(-0.1, 0.1, (count, 3)), 0.05, 1)
    for surface in range(count):
        texture = rng.choice(["plain", "checker", "stripes", "blobs"], p=[0.35, 0.25, 0.2, 0.2])
        pitch = rng.uniform(0.12, 0.3) if surface < SLOTS else rng.uniform(0.4, 0.8)
        axes = {"plain": [], "stripes": [rng.integers(3)]}.get(str(texture), [0, 1, 2])
        if surface == SLOTS and texture != "plain":  # the floor has no height
            axes = [rng.choice([0, 2])] if texture == "stripes" else [0, 2]
        for axis in axes:
            frequency[surface, axis] = np.pi / pitch * (rng.uniform(0.6, 1.4) if texture == "blobs" else 1)
            phase[surface, axis] = rng.uniform(0, 2 * np.pi)
        contrast[surface] = {"plain": 0.0, "blobs": 0.6}.get(str(texture), 20.0)
    return {
        "colours": np.stack([base, other], axis=1),
        "frequency": frequency,
        "phase": phase,
        "contrast": contrast,
    }
