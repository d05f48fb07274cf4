"""The labels of scenes are exact, repeatable and disjoint between splits."""

from pathlib import Path

import numpy as np
import pytest
import torch

from secateur.core.seeds import seed_everything
from secateur.workloads import scene_splits, scenes
from secateur.workloads.scene_geometry import CLASSES, draw
from secateur.workloads.scene_images import SIZE, TAN_HALF_VIEW, images

FLOOR, WALL, SPHERE = (CLASSES.index(name) for name in ("floor", "wall", "sphere"))
SEEDS = range(500, 532)


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    return images(SEEDS)


@pytest.fixture(scope="module")
def points(data: dict[str, np.ndarray]) -> np.ndarray:
    """Camera coordinates [N, 3, 64, 64] of what each pixel shows, from depth and the camera's view alone."""
    grid = (np.arange(SIZE) + 0.5) * 2 / SIZE - 1
    x, y = np.meshgrid(grid * TAN_HALF_VIEW, -grid * TAN_HALF_VIEW)
    return data["depth"] * np.stack([x, y, -np.ones_like(x)])


def test_every_class_occurs_and_depth_is_positive(data: dict[str, np.ndarray]) -> None:
    assert set(np.unique(data["segmentation"])) == set(range(len(CLASSES)))
    assert data["depth"].min() > 0.3
    assert data["depth"].max() < 20


def test_normals_have_unit_length_and_face_the_camera(data: dict[str, np.ndarray], points: np.ndarray) -> None:
    assert np.abs(np.linalg.norm(data["normals"], axis=1) - 1).max() < 1e-5
    assert (data["normals"] * points).sum(axis=1).max() < 1e-3


def test_floor_points_lie_on_the_floor(data: dict[str, np.ndarray], points: np.ndarray) -> None:
    drawn = draw(SEEDS)
    cos, sin = np.cos(drawn.pitch)[:, None, None], np.sin(drawn.pitch)[:, None, None]
    height = drawn.camera[:, 1, None, None] + points[:, 1] * cos + points[:, 2] * sin
    floor = data["segmentation"] == FLOOR
    assert np.abs(height[floor]).max() < 1e-4
    assert height[~floor].min() > -1e-4, "nothing is below the floor"


def test_normals_of_flat_faces_are_those_of_their_points(data: dict[str, np.ndarray], points: np.ndarray) -> None:
    across, down = np.diff(points, axis=3)[:, :, :-1], np.diff(points, axis=2)[..., :-1]
    normal = np.cross(down, across, axis=1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    flat = np.isin(data["segmentation"], [FLOOR, WALL, CLASSES.index("box")]) & (data["edges"][:, 0] == 0)
    flat = flat[:, :-1, :-1]
    cosine = (normal * data["normals"][..., :-1, :-1]).sum(axis=1)[flat]
    assert flat.sum() > 10_000
    assert cosine.min() > 0.999


def test_points_of_a_sphere_are_one_radius_from_its_centre(data: dict[str, np.ndarray], points: np.ndarray) -> None:
    drawn, seen = draw(SEEDS), 0
    for scene, kinds in enumerate(drawn.kind):
        mask = data["segmentation"][scene] == SPHERE
        slots = np.nonzero(kinds == SPHERE - 2)[0]
        if mask.sum() < 30 or len(slots) != 1:
            continue
        radius = drawn.size[scene, slots[0], 0]
        centres = (points[scene] - radius * data["normals"][scene])[:, mask]
        assert np.ptp(centres, axis=1).max() < 1e-3
        seen += 1
    assert seen > 3


def test_edges_are_on_both_sides_of_every_class_border_and_jump_of_depth(data: dict[str, np.ndarray]) -> None:
    labels, edges, depth = data["segmentation"], data["edges"][:, 0], data["depth"][:, 0]
    border = (labels[..., 1:] != labels[..., :-1]) | (np.abs(np.diff(depth, axis=-1)) > 1.5)
    assert border.sum() > 100
    assert edges[..., 1:][border].all()
    assert edges[..., :-1][border].all()
    assert 0.05 < edges.mean() < 0.25


def test_the_same_seeds_give_the_same_scenes_however_they_are_divided(data: dict[str, np.ndarray]) -> None:
    again = images(SEEDS[20:24], threads=1)
    for name, array in again.items():
        np.testing.assert_array_equal(array, data[name][20:24])
    assert not np.array_equal(data["image"][0], data["image"][1])


def test_splits_share_no_seed() -> None:
    seeds = [set(seeds) for seeds in scene_splits.SPLITS.values()]
    assert len(set.union(*seeds)) == sum(map(len, seeds))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache of its own, and splits of a few scenes."""
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "secateur"))
    monkeypatch.setitem(scene_splits.SPLITS, "train", range(40))
    return tmp_path / "secateur" / "scenes-train.safetensors"


@pytest.mark.parametrize("damage", ["truncated", "changed", "other version", "not a file of ours"])
def test_a_damaged_cache_is_rendered_again(small: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    first = scene_splits.split("train")
    content = small.read_bytes()
    if damage == "truncated":
        small.write_bytes(content[:-1000])
    elif damage == "changed":
        small.write_bytes(content[:-1000] + bytes([content[-1000] ^ 1]) + content[-999:])
    elif damage == "other version":
        monkeypatch.setattr(scene_splits, "VERSION", "another")
    else:
        small.write_bytes(b"hello")
    again = scene_splits.split("train")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert small.stat().st_size > len(content) // 2


def test_a_sound_cache_is_read_and_not_rendered(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = scene_splits.split("train")
    monkeypatch.setattr(scene_splits, "images", None)
    assert torch.equal(scene_splits.split("train")["depth"], first["depth"])


def test_a_cache_that_cannot_be_written_costs_only_time(small: Path) -> None:
    small.parent.write_text("a file where the folder should be")
    assert len(scene_splits.split("train")["depth"]) == 40


def test_training_batches_are_shuffled_anew_but_repeat_with_the_seed(small: Path) -> None:
    loader = scenes.loader("train")

    def passes() -> list[torch.Tensor]:
        seed_everything(3)
        return [torch.cat([targets["depth"] for _, targets in loader]) for _ in range(2)]

    first, second = passes()
    assert first.shape == second.shape == (40, 1, SIZE, SIZE)
    assert not torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(passes(), (first, second), strict=True))
    assert len(loader) == len(list(loader)) == 2


def test_mirrored_normals_are_those_of_the_mirrored_world(data: dict[str, np.ndarray], points: np.ndarray) -> None:
    tensors = {name: torch.from_numpy(array) for name, array in data.items()}
    inputs, targets = scenes.mirror(*scenes.prepare(tensors.pop("image"), tensors))
    assert torch.equal(inputs.flip(-1), torch.from_numpy(data["image"]).float() / 255)
    mirrored = points[..., ::-1] * np.array([-1, 1, 1]).reshape(3, 1, 1)
    across, down = np.diff(mirrored, axis=3)[:, :, :-1], np.diff(mirrored, axis=2)[..., :-1]
    normal = np.cross(down, across, axis=1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    wall = ((targets["segmentation"] == WALL) & (targets["edges"][:, 0] == 0)).numpy()[:, :-1, :-1]
    cosine = (normal * targets["normals"].numpy()[..., :-1, :-1]).sum(axis=1)[wall]
    assert cosine.min() > 0.999
