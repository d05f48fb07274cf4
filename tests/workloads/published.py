"""Small data sets in the published layouts: the real folders and file formats, random content."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

HEIGHT, WIDTH = 60, 80


def nyudv2(home: Path, train: int = 12, test: int = 3) -> Path:
    root, draw = home / "NYUD_MT", np.random.default_rng(0)
    for below in ("images", "segmentation", "depth", "normals", "edge", "gt_sets"):
        (root / below).mkdir(parents=True)
    names = _splits(root / "gt_sets", train, test)
    for name in names:
        _image(root / "images" / f"{name}.jpg", draw)
        _classes(root / "segmentation" / f"{name}.png", draw, 41)
        depth = draw.uniform(1, 9, (HEIGHT, WIDTH)).astype(np.float32)
        depth[:5] = 0
        normals = draw.normal(size=(HEIGHT, WIDTH, 3))
        normals /= np.linalg.norm(normals, axis=2, keepdims=True)
        normals[:, :7] = 0
        np.save(root / "depth" / f"{name}.npy", depth)
        np.save(root / "normals" / f"{name}.npy", normals.astype(np.float32))
        np.save(root / "edge" / f"{name}.npy", (draw.random((HEIGHT, WIDTH)) < 0.1).astype(np.float32))
    return root


def pascal_context(home: Path, train: int = 12, test: int = 3) -> Path:
    root, draw = home / "PASCAL_MT", np.random.default_rng(1)
    for below in (
        "ImageSets/Context", "JPEGImages", "semseg/VOC12", "semseg/pascal-context", "human_parts",
        "pascal-context/trainval", "normals_distill", "sal_distill", "db_info",
    ):  # fmt: skip
        (root / below).mkdir(parents=True)
    (root / "db_info" / "context_classes.json").write_text('{"floor": 1, "sky": 2, "tvmonitor": 3, "unknown": 4}')
    (root / "db_info" / "nyu_classes.json").write_text('{"floor": 11, "unknown": 20}')
    for index, name in enumerate(_splits(root / "ImageSets" / "Context", train, test)):
        _image(root / "JPEGImages" / f"{name}.jpg", draw)
        _classes(root / "semseg" / ("VOC12" if index % 2 else "pascal-context") / f"{name}.png", draw, 21)
        _image(root / "normals_distill" / f"{name}.png", draw)
        _classes(root / "sal_distill" / f"{name}.png", draw, 256)
        labels = np.ones((HEIGHT, WIDTH), np.uint16)
        labels[:, WIDTH // 2 :] = 2  # floor on the left, sky on the right
        savemat(root / "pascal-context" / "trainval" / f"{name}.mat", {"LabelMap": labels})
        savemat(root / "human_parts" / f"{name}.mat", {"anno": {"imname": name, "objects": _objects(index)}})
    return root


def _objects(index: int) -> list[dict[str, object]]:
    """A car, and in every other picture a person whose head is the upper left corner and whose left foot is below."""
    head, foot = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    head[:10, :10], foot[10:20, :10] = 1, 1
    parts = [{"part_name": "hair", "mask": head}, {"part_name": "lfoot", "mask": foot}]
    car: dict[str, object] = {"class": "car", "class_ind": 7, "mask": head, "parts": parts[:1]}
    person: dict[str, object] = {"class": "person", "class_ind": 15, "mask": head | foot, "parts": parts}
    return [car, person] if index % 2 else [car]


def cifar100(home: Path, each: int = 2) -> Path:
    """Every fine class as often in both files; fine class f belongs to coarse class f % 20."""
    root, draw = home / "cifar-100-binary", np.random.default_rng(2)
    root.mkdir()
    for name in ("train", "test"):
        fine = draw.permutation(np.repeat(np.arange(100), each))
        pixels = draw.integers(256, size=(len(fine), 3072))
        records = np.concatenate([(fine % 20)[:, None], fine[:, None], pixels], axis=1)
        (root / f"{name}.bin").write_bytes(records.astype(np.uint8).tobytes())
    return root


def coco(home: Path, pictures: int = 11) -> Path:
    """Each picture holds a dog of 20 × 30 pixels at (10, 5), and a crowd."""
    root, draw = home / "coco", np.random.default_rng(3)
    (root / "annotations").mkdir(parents=True)
    categories = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}]
    for split in ("train", "val"):
        (root / f"{split}2017").mkdir()
        images, annotations = [], []
        for number in range(pictures):
            name = f"{number:012d}.jpg"
            _image(root / f"{split}2017" / name, draw)
            images.append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
            annotations += [
                {"image_id": number, "category_id": 18, "bbox": [10, 5, 20, 30], "iscrowd": 0},
                {"image_id": number, "category_id": 3, "bbox": [0, 0, 50, 50], "iscrowd": 1},
            ]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(document))
    return root


def _splits(folder: Path, train: int, test: int) -> list[str]:
    names = [f"{number:04d}" for number in range(train + test)]
    (folder / "train.txt").write_text("\n".join(names[:train]) + "\n")
    (folder / "val.txt").write_text("\n".join(names[train:]) + "\n")
    return names


def _image(path: Path, draw: np.random.Generator) -> None:
    Image.fromarray(draw.integers(256, size=(HEIGHT, WIDTH, 3)).astype(np.uint8)).save(path)


def _classes(path: Path, draw: np.random.Generator, classes: int) -> None:
    Image.fromarray(draw.integers(classes, size=(HEIGHT, WIDTH)).astype(np.uint8)).save(path)
