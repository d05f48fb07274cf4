"""Published data sets in their own layouts: the real path runs on small data, labels are what the files say, and what
is missing or damaged is one clear line that names the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import published
import pytest
import torch
from PIL import Image
from torch import nn

from secateur.compress import slimmable
from secateur.core.errors import SecateurError
from secateur.core.predict import check, evaluate, losses
from secateur.core.task import Workload
from secateur.verbs.select import select
from secateur.workloads import cifar100_mtl, coco, dense, nyudv2, pascal_context, workload
from secateur.workloads.models.hrnet import HRNet
from secateur.workloads.models.yolo import AnchorGrid

LAYOUT: dict[str, Callable[[Path], Path]] = {
    "nyudv2": published.nyudv2,
    "pascal_context": published.pascal_context,
    "cifar100_mtl": published.cifar100,
    "detection": published.coco,
}
SMALL = AnchorGrid(64, (8, 16, 32), (((6.0, 6.0),), ((16.0, 24.0),), ((30.0, 30.0),)))


@pytest.fixture(params=LAYOUT)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder, and networks of a size for tests."""
    monkeypatch.setenv("SECATEUR_DATA", str(tmp_path))
    for module in (nyudv2, pascal_context):
        monkeypatch.setattr(module, "SIZE", (64, 96))
        monkeypatch.setattr(module, "hrnet18", lambda: HRNet(4, (1, 1, 1), 1, 4))
    monkeypatch.setattr(cifar100_mtl, "network", lambda: cifar100_mtl.CoarseHeads((8, 8), 1))
    monkeypatch.setattr(coco, "SIZE", 64)
    monkeypatch.setattr(coco, "GRID", SMALL)
    monkeypatch.setattr(coco, "network", lambda: coco.YOLO(coco.CLASSES, SMALL, (4, 4, 4, 8, 8)))
    return tmp_path


def test_the_whole_path_runs_on_data_in_the_published_layout(name: str, home: Path) -> None:
    LAYOUT[name](home)
    loaded: Workload = workload(name)
    check(loaded)
    values = evaluate(loaded.model, loaded.test, loaded.tasks)
    assert values.keys() == set(loaded.task_names)
    torch.stack(list(losses(loaded.model.train(), next(iter(loaded.train)), loaded.tasks).values())).sum().backward()
    train, calibration = (sum(len(inputs) for inputs, _ in part) for part in (loaded.train, loaded.calibration))
    assert (train, calibration) == {
        "nyudv2": (11, 1), "pascal_context": (11, 1), "cifar100_mtl": (180, 20), "detection": (10, 1),
    }[name]  # fmt: skip


def test_weights_beside_the_data_are_used(name: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from secateur.workloads import built_in, checkpoint

    root = LAYOUT[name](home)
    first = workload(name).model
    assert "untrained" in capsys.readouterr().err
    trained: nn.Module = built_in(name).network()
    checkpoint.save(trained, name, {}, _made(root / "weights"))
    second = workload(name).model
    stored = checkpoint.as_shipped(trained)
    assert all(torch.equal(one, second.state_dict()[key].to(one.dtype)) for key, one in stored.items())
    assert first.state_dict().keys() == second.state_dict().keys()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_training_steps_reach_every_parameter(name: str, home: Path) -> None:
    """With the further losses on initial predictions, where a network has them."""
    from secateur.workloads import built_in

    LAYOUT[name](home)
    recipe = built_in(name).recipe()
    model = built_in(name).network().train()
    inputs, targets = next(iter(recipe.loader("train")))
    output = model(inputs)
    loss = torch.stack([task.loss(output[task.name], targets[task.name]) for task in recipe.tasks]).sum()
    if recipe.extra is not None:
        further = recipe.extra(output, targets)
        assert further > 0
        loss = loss + further
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nyudv2", "cifar100_mtl"])
def test_the_recipes_of_the_slimmable_paper_run(name: str, home: Path) -> None:
    """docs/slimmable-recipes.md on small data: trained, tabulated, and chosen from."""
    LAYOUT[name](home)
    settings = slimmable.Settings(
        widths=(0.5,), round_to=2, epochs=1, rows=2, exported=2, recalibration_batches=1, calibration_samples=2
    )
    elastic = slimmable.slim(workload(name), settings)
    assert len(elastic.history["fine_tuning"]) == 1
    assert elastic.table.tasks == elastic.workload.task_names
    choice = select(elastic, "flops<=100%", prefer={elastic.table.tasks[0]: 2}).choice
    assert choice.met
    assert set(choice.metrics) == set(elastic.table.tasks)
    least = select(elastic, "flops<=1%").choice
    assert not least.met
    assert least.costs["flops"] < choice.costs["flops"]


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("nyudv2", "depth/0003.npy"),
        ("nyudv2", "gt_sets/val.txt"),
        ("pascal_context", "human_parts/0001.mat"),
        ("pascal_context", "semseg/pascal-context/0000.png"),
        ("pascal_context", "db_info/nyu_classes.json"),
        ("cifar100_mtl", "test.bin"),
        ("detection", "annotations/instances_val2017.json"),
        ("detection", "train2017/000000000002.jpg"),
    ],
)
def test_a_missing_file_is_named_at_once(name: str, gone: str, home: Path) -> None:
    (LAYOUT[name](home) / gone).unlink()
    pascal_context.known_classes.cache_clear()
    with pytest.raises(SecateurError, match="no file") as caught:
        workload(name)
    assert gone in caught.value.message
    assert "docs/workloads.md" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "damaged", "content"),
    [
        ("nyudv2", "depth/0014.npy", b"\x93NUMPY and then nothing"),
        ("nyudv2", "images/0014.jpg", b"no picture"),
        ("pascal_context", "pascal-context/trainval/0014.mat", b"no matrix" * 30),
        ("cifar100_mtl", "test.bin", bytes(3074 + 1)),
        ("cifar100_mtl", "test.bin", bytes([30]) * 3074),
        ("detection", "annotations/instances_val2017.json", b'{"images": 3}'),
    ],
)
def test_a_damaged_file_is_named(name: str, damaged: str, content: bytes, home: Path) -> None:
    path = LAYOUT[name](home) / damaged
    path.write_bytes(content)
    with pytest.raises(SecateurError) as caught:
        list(workload(name).test)
    assert str(path) in caught.value.message


def test_pickles_are_refused(home: Path) -> None:
    path = published.nyudv2(home) / "depth" / "0014.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(SecateurError, match="cannot be read"):
        list(workload("nyudv2").test)


def test_without_the_variable_or_the_folder_the_way_out_is_told(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SECATEUR_DATA", raising=False)
    with pytest.raises(SecateurError, match="SECATEUR_DATA is not set"):
        workload(name)
    monkeypatch.setenv("SECATEUR_DATA", str(tmp_path))
    with pytest.raises(SecateurError, match="does not exist"):
        workload(name)


def test_labels_of_nyudv2_are_those_of_the_files(home: Path) -> None:
    root = published.nyudv2(home)
    inputs, targets = next(iter(nyudv2.loader("test")))
    stored = np.asarray(Image.open(root / "segmentation" / "0012.png")).astype(int)
    found = targets["segmentation"][0, :60, :80].numpy()
    assert ((found + 1)[stored > 0] == stored[stored > 0]).all()
    assert (found[stored == 0] == dense.IGNORE).all()
    assert (targets["segmentation"][0, 60:] == dense.IGNORE).all()
    assert np.array_equal(targets["depth"][0, 0, :60, :80], np.load(root / "depth" / "0012.npy"))
    assert np.array_equal(
        inputs[0, :, :60, :80] * 255, np.moveaxis(np.asarray(Image.open(root / "images/0012.jpg")), -1, 0)
    )


def test_labels_of_pascal_context_are_those_of_the_files(home: Path) -> None:
    published.pascal_context(home)
    _, targets = next(iter(pascal_context.loader("test")))
    with_person, without = targets["parts"][1], targets["parts"][0]
    assert (with_person[:10, :10] == 1).all(), "the hair is of the head"
    assert (with_person[10:20, :10] == 6).all(), "a foot is of a lower leg"
    assert (without[:60, :80] == 0).all(), "a car has no human parts"
    assert (with_person[60:] == dense.IGNORE).all()
    edges = targets["edges"][0, 0, :60, :80]
    assert (edges[:, 39] == 1).all()
    assert edges.sum() == 60, "one border, between floor and sky, one pixel wide"
    known = dense.known_normals(targets["normals"])[0, :60, :80]
    assert not known[:, 40:].any(), "sky has no normals that count"
    assert known[:, :40].float().mean() > 0.9


def test_tasks_of_cifar_have_five_classes_of_their_own(home: Path) -> None:
    published.cifar100(home)
    _, targets = cifar100_mtl.loader("test").stored
    own = torch.stack([targets[task] != dense.IGNORE for task in cifar100_mtl.TASKS])
    assert (own.sum(0) == 1).all(), "every sample belongs to one task"
    assert (own.sum(1) == 10).all()
    _, coarse, fine = cifar100_mtl.read(home / "cifar-100-binary" / "test.bin")
    for number, task in enumerate(cifar100_mtl.TASKS):
        mine = coarse == number
        assert torch.equal(targets[task][mine], fine[mine] // 20), "the n-th of the task's fine classes in order"


def test_boxes_of_coco_are_scaled_into_the_square_without_crowds(home: Path) -> None:
    published.coco(home)
    inputs, targets = next(iter(coco.loader("test")))
    objects = targets["box"][0]
    assert inputs.shape[1:] == (3, 64, 64)
    assert (objects[:, 0] >= 0).sum() == 1
    assert objects[0].tolist() == pytest.approx([1, 20 / 80, 20 / 80, 20 / 80, 30 / 80]), "dog is the second by number"
    assert inputs[0, :, 48:].eq(coco.GREY / 255).all(), "60 of 80 rows are picture"


def test_iou_and_angles_and_depths_by_hand() -> None:
    truth = torch.tensor([[[0, 0, 1, dense.IGNORE]]])
    logits = torch.eye(3)[torch.tensor([0, 1, 1, 2])].T.reshape(1, 3, 1, 4)
    iou = dense.SegmentationIoU(3)
    iou.update(logits, truth)
    assert iou.compute() == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    depth = dense.DepthRMSE()
    depth.update(torch.tensor([[[[1.0, 5.0, 9.0]]]]), torch.tensor([[[[2.0, 2.0, 0.0]]]]))
    assert depth.compute() == pytest.approx(((1 + 9) / 2) ** 0.5)
    angle = dense.MeanAngle()
    angle.update(
        torch.tensor([1.0, 1, 0]).view(1, 3, 1, 1).expand(1, 3, 1, 2), torch.tensor([[[[2.0, 0]], [[0, 0]], [[0, 0]]]])
    )
    assert angle.compute() == pytest.approx(45)


def test_max_f_by_hand() -> None:
    """At any threshold the first picture has precision 1/2 and recall 1, the second 1 and 1/2: F of (3/4, 3/4)."""
    logits = torch.tensor([[9.0, 9.0, -9.0, -9.0], [9.0, -9.0, -9.0, -9.0]]).view(2, 1, 1, 4)
    truth = torch.tensor([[1.0, 0, 0, 255], [1, 1, 0, 0]]).view(2, 1, 1, 4)
    metric = dense.MaxF()
    metric.update(logits, truth)
    assert metric.compute() == pytest.approx(0.75)


def test_edges_within_the_slack_are_right_and_beyond_are_not() -> None:
    truth = torch.zeros(1, 1, 30, 40)
    truth[..., 10] = 1
    for shift, expected in ((0, 1.0), (2, 1.0), (3, 0.0)):  # the diagonal is 50, of which 4 % are 2 pixels
        metric = dense.OptimalEdgeF(slack=0.04)
        metric.update(torch.where(truth.roll(shift, -1) > 0, 4.0, -9.0), truth)
        found = metric.compute()
        assert found == pytest.approx(expected, abs=0.1), shift


def test_what_does_not_count_has_no_loss() -> None:
    nothing = {
        dense.segmentation_loss: (torch.randn(1, 3, 4, 4), torch.full((1, 4, 4), dense.IGNORE)),
        dense.depth_loss: (torch.randn(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)),
        dense.normals_loss: (torch.randn(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)),
        dense.saliency_loss: (torch.randn(1, 1, 4, 4), torch.full((1, 1, 4, 4), 255.0)),
    }
    for loss, (prediction, target) in nothing.items():
        prediction.requires_grad_()
        value = loss(prediction, target)
        value.backward()
        assert value == 0
        assert prediction.grad is not None
        assert not prediction.grad.any()
