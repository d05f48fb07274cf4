"""Pictures of scenes with exact labels: each pixel's ray is met with every surface, and the nearest one is seen.

All labels come from the analytic hit: the class of the surface, the depth along the optical axis in metres, the unit
normal in the camera frame (x right, y up, z towards the camera), and edges where the smooth face that is seen changes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from secateur.workloads.raycast import INTERVAL, SURFACE, Array, Vector, dot, rotated
from secateur.workloads.scene_geometry import CLASSES, KINDS, PLANES, SLOTS, SOLID, Scenes, draw

SIZE = 64
TAN_HALF_VIEW = np.float32(np.tan(np.deg2rad(30)))
CHUNK = 16
"""Scenes cast at a time: their arrays stay in the processor's cache."""
FACES = 8
"""Room for the faces of one surface in the numbering of faces."""


def images(seeds: range, threads: int = 2) -> dict[str, Array]:
    """Render one scene for each seed.

    Returns:
        image uint8 [N, 3, 64, 64], segmentation uint8 [N, 64, 64], depth float32 [N, 1, 64, 64] in metres, normals
        float32 [N, 3, 64, 64], edges uint8 [N, 1, 64, 64], surface uint8 [N, 64, 64]: which of the scene's surfaces.
    """
    chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(_chunk, chunks))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _chunk(seeds: range) -> dict[str, Array]:
    scenes = draw(seeds)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return _cast(scenes, seeds)


def _cast(scenes: Scenes, seeds: range) -> dict[str, Array]:
    direction = _rays(scenes.pitch)
    distances = np.concatenate([_object_distances(scenes, direction), _plane_distances(scenes, direction)], axis=1)
    surface = distances.argmin(axis=1)  # [N, P]
    depth = np.take_along_axis(distances, surface[:, None], axis=1)[:, 0]
    point = tuple(scenes.camera[:, i, None] + depth * direction[i] for i in range(3))
    normal, face, texture_point = _surfaces(scenes, surface, point)
    light = _light(scenes, point, normal)
    shape = (len(seeds), 1, SIZE, SIZE)
    return {
        "image": _picture(scenes, surface, texture_point, light, seeds),
        "segmentation": _classes(scenes)[np.arange(len(seeds))[:, None], surface].reshape(len(seeds), SIZE, SIZE),
        "depth": depth.reshape(shape),
        "normals": np.stack(_to_camera(scenes.pitch, normal), axis=1).reshape(len(seeds), 3, SIZE, SIZE),
        "edges": _edges((surface * FACES + face).reshape(shape)),
        "surface": surface.astype(np.uint8).reshape(len(seeds), SIZE, SIZE),
    }


def _rays(pitch: Array) -> Vector:
    """World directions [N, P] of the pixels' rays, scaled so that the ray parameter is the depth."""
    grid = (np.arange(SIZE, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / SIZE) - 1
    x, y = np.meshgrid(grid * TAN_HALF_VIEW, -grid * TAN_HALF_VIEW)
    cos, sin = np.cos(pitch)[:, None], np.sin(pitch)[:, None]
    x, y = x.reshape(1, -1), y.reshape(1, -1)
    return np.broadcast_to(x, (len(pitch), SIZE * SIZE)), y * cos - sin, -y * sin - cos


def _to_camera(pitch: Array, world: Vector) -> Vector:
    cos, sin = np.cos(pitch)[:, None], np.sin(pitch)[:, None]
    return world[0], world[1] * cos - world[2] * sin, world[1] * sin + world[2] * cos


def _plane_distances(scenes: Scenes, direction: Vector) -> Array:
    distances = []
    for i in range(PLANES):
        normal = tuple(scenes.plane_normal[:, i, axis, None] for axis in range(3))
        slope = dot(normal, direction)
        height = scenes.plane_offset[:, i, None] - (scenes.plane_normal[:, i] * scenes.camera).sum(-1)[:, None]
        distances.append(np.where(slope < 0, height / slope, np.float32(np.inf)))
    return np.stack(distances, axis=1)


def _object_distances(scenes: Scenes, direction: Vector) -> Array:
    """[N, SLOTS, P] ray parameter where each object is entered, infinite where it is missed."""
    distances = np.full((*scenes.kind.shape, SIZE * SIZE), np.inf, np.float32)
    for name, (scene, slot) in _by_kind(scenes):
        inverse = scenes.pose[scene, slot].transpose(0, 2, 1)[:, None]
        offset = (scenes.camera[scene] - scenes.centre[scene, slot]).T[..., None]
        local = rotated(inverse, tuple(d[scene] for d in direction))
        enter, leave = INTERVAL[SOLID[name]](rotated(inverse, tuple(offset)), local, _size(scenes, scene, slot))
        distances[scene, slot] = np.where((enter <= leave) & (enter > 0), enter, np.float32(np.inf))
    return distances


def _by_kind(scenes: Scenes) -> list[tuple[str, tuple[Array, Array]]]:
    """(class, (scenes, slots)) of the objects of each class that occurs."""
    found = [(name, np.nonzero(scenes.kind == index)) for index, name in enumerate(KINDS)]
    return [(name, (where[0], where[1])) for name, where in found if where[0].size]


def _size(scenes: Scenes, scene: Array, slot: Array) -> Vector:
    return tuple(scenes.size[scene, slot].T[..., None])


def _surfaces(scenes: Scenes, surface: Array, point: Vector) -> tuple[Vector, Array, Vector]:
    """World normal, face and texture coordinates of each seen point [N, P]."""
    rows = np.arange(len(surface))[:, None]
    plane = np.maximum(surface - SLOTS, 0)
    normal = np.ascontiguousarray(np.moveaxis(scenes.plane_normal[rows, plane], -1, 0))
    face = np.zeros(surface.shape, np.intp)
    texture_point = np.stack(point)
    object_kind = np.where(surface < SLOTS, scenes.kind[rows, np.minimum(surface, SLOTS - 1)], -1)
    for index, name in enumerate(KINDS):
        scene, pixel = np.nonzero(object_kind == index)
        slot = surface[scene, pixel]
        pose = scenes.pose[scene, slot]
        away = (texture_point[:, scene, pixel].T - scenes.centre[scene, slot]).T
        local = rotated(pose.transpose(0, 2, 1), tuple(away))
        size = tuple(scenes.size[scene, slot].T)
        local_normal, face[scene, pixel] = SURFACE[SOLID[name]](local, size)
        normal[:, scene, pixel] = rotated(pose, local_normal)
        texture_point[:, scene, pixel] = local
    return tuple(normal), face, tuple(texture_point)


def _light(scenes: Scenes, point: Vector, normal: Vector) -> Array:
    """Ambient plus Lambert's cosine, where no object stands in the way of the light."""
    toward = tuple(scenes.light[:, i, None] for i in range(3))
    facing = np.maximum(dot(normal, toward), 0)
    start = tuple(p + np.float32(2e-3) * n for p, n in zip(point, normal, strict=True))
    for name, (scene, slot) in _by_kind(scenes):
        inverse = scenes.pose[scene, slot].transpose(0, 2, 1)[:, None]
        centre = scenes.centre[scene, slot].T[..., None]
        origin = rotated(inverse, tuple(s[scene] - c for s, c in zip(start, centre, strict=True)))
        local = rotated(inverse, tuple(t[scene] for t in toward))
        enter, leave = INTERVAL[SOLID[name]](origin, local, _size(scenes, scene, slot))
        shadow = (enter <= leave) & (leave > 2e-3)
        np.multiply.at(facing, scene, np.where(shadow, np.float32(0), np.float32(1)))
    ambient = scenes.ambient[:, None]
    lit: Array = ambient * (1 + np.float32(0.3) * normal[1]) + (1 - ambient) * facing
    return lit


def _picture(scenes: Scenes, surface: Array, point: Vector, light: Array, seeds: range) -> Array:
    """Textured albedo × light, gamma 2, sensor noise: uint8 [N, 3, 64, 64]."""
    rows = np.arange(len(surface))[:, None]
    weave = scenes.contrast[rows, surface]
    for axis in range(3):
        weave = weave * np.sin(scenes.frequency[rows, surface, axis] * point[axis] + scenes.phase[rows, surface, axis])
    mix = np.clip(np.float32(0.5) + weave, 0, 1)[..., None]
    albedo = mix * scenes.colours[rows, surface, 0] + (1 - mix) * scenes.colours[rows, surface, 1]
    colour = np.sqrt(np.clip(albedo * light[..., None], 0, 1))
    colour = np.moveaxis(colour, -1, 1).reshape(len(seeds), 3, SIZE, SIZE)
    for row, seed in enumerate(seeds):
        rng = np.random.default_rng([21, seed])
        colour[row] += np.float32(rng.uniform(0.005, 0.03)) * rng.standard_normal(colour[row].shape, np.float32)
    picture: Array = np.rint(np.clip(colour, 0, 1) * 255).astype(np.uint8)
    return picture


def _classes(scenes: Scenes) -> Array:
    """[N, SLOTS + PLANES] class of each surface; object kinds come in the order of CLASSES after wall and floor."""
    planes = np.full((len(scenes.kind), PLANES), CLASSES.index("wall"))
    planes[:, 0] = CLASSES.index("floor")
    return np.concatenate([scenes.kind + CLASSES.index(KINDS[0]), planes], axis=1).astype(np.uint8)


def _edges(face: Array) -> Array:
    """1 on both sides of every border between smooth faces: occlusions and creases."""
    edges = np.zeros(face.shape, np.uint8)
    across, down = face[..., 1:] != face[..., :-1], face[..., 1:, :] != face[..., :-1, :]
    edges[..., 1:] |= across
    edges[..., :-1] |= across
    edges[..., 1:, :] |= down
    edges[..., :-1, :] |= down
    return edges
