"""The detector's geometry, losses and data: by hand, and exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secateur.core.errors import WorkloadError
from secateur.workloads import scenes_detect
from secateur.workloads.average_precision import MeanAveragePrecision
from secateur.workloads.boxes import iou
from secateur.workloads.detection_losses import AssignedIoU, assign, box_loss, class_loss, objectness_loss
from secateur.workloads.detection_pictures import Renderer
from secateur.workloads.models.two_stage import Proposals, RegionHead, TwoStage, best_boxes, roi_align
from secateur.workloads.models.yolo import Detect
from secateur.workloads.scene_boxes import LEAST, visible_boxes
from secateur.workloads.scene_geometry import CLASSES as SURFACES
from secateur.workloads.scene_geometry import KINDS, draw
from secateur.workloads.scene_images import SIZE, images
from secateur.workloads.scenes_detect import GRID

SEEDS = range(700, 716)
FINE, MIDDLE, COARSE = GRID.counts
CELLS = SIZE // 4
"""Cells along a side of the finest scale."""


@pytest.fixture(scope="module")
def rendered() -> dict[str, np.ndarray]:
    return images(SEEDS)


def target(*rows: tuple[float, ...]) -> torch.Tensor:
    """Boxes in pixels → [1, S, 5] as stored."""
    boxes = torch.tensor([rows])
    boxes[..., 1:] /= SIZE
    return boxes


def test_boxes_enclose_the_visible_pixels_of_their_object_exactly(rendered: dict[str, np.ndarray]) -> None:
    kinds = draw(SEEDS).kind
    boxes = visible_boxes(rendered["surface"], kinds)
    found = 0
    for scene, slot in np.ndindex(kinds.shape):
        rows, columns = np.nonzero(rendered["surface"][scene] == slot)
        if len(rows) < LEAST:
            assert boxes[scene, slot, 0] == -1
            continue
        found += 1
        assert boxes[scene, slot, 0] == kinds[scene, slot]
        x, y, width, height = boxes[scene, slot, 1:] * SIZE
        assert (x - width / 2, x + width / 2) == (columns.min(), columns.max() + 1)
        assert (y - height / 2, y + height / 2) == (rows.min(), rows.max() + 1)
        classes = rendered["segmentation"][scene, rows, columns]
        assert (classes == SURFACES.index(KINDS[kinds[scene, slot]])).all()
    assert found > 30


def test_mirrored_boxes_are_those_of_the_mirrored_picture(rendered: dict[str, np.ndarray]) -> None:
    kinds = draw(SEEDS).kind
    boxes, flipped = (
        torch.from_numpy(visible_boxes(surface, kinds))
        for surface in (rendered["surface"], rendered["surface"][..., ::-1])
    )
    real = boxes[..., 0] >= 0
    mirrored = scenes_detect.mirror(boxes, torch.ones(len(boxes), dtype=torch.bool))
    torch.testing.assert_close(mirrored[real], flipped[real])
    assert torch.equal(scenes_detect.mirror(boxes, torch.zeros(len(boxes), dtype=torch.bool)), boxes)


def test_zero_logits_are_the_anchors_in_the_middle_of_their_cells() -> None:
    head = Detect((1, 1, 1), 2, GRID)
    for convolution in head.convolutions:
        torch.nn.init.zeros_(convolution.weight)  # type: ignore[arg-type]
        torch.nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    boxes = head([torch.zeros(1, 1, side, side) for side in GRID.cells])[0, :, :4] * SIZE
    assert len(boxes) == FINE + MIDDLE + COARSE
    anchor, row, column = 1, 3, 5
    place = (anchor * CELLS + row) * CELLS + column
    assert boxes[place].tolist() == pytest.approx([4 * 5.5, 4 * 3.5, *GRID.anchors[0][anchor]])
    place = FINE + MIDDLE + (2 * 4 + 1) * 4 + 3
    assert boxes[place].tolist() == pytest.approx([16 * 3.5, 16 * 1.5, *GRID.anchors[2][2]])


def test_an_object_is_assigned_to_fitting_anchors_in_three_cells() -> None:
    """A box of 5 × 10 fits all anchors but those with a side more than four times its own: 23 × 29 and 25 high."""
    found = assign(target((2, 22.5, 13.0, 5.0, 10.0)), GRID)
    fine = found.prediction[found.prediction < FINE]
    anchor, row, column = fine // CELLS**2, fine // CELLS % CELLS, fine % CELLS
    assert set(anchor.tolist()) == {0, 1, 2}
    cells = set(zip(row.tolist(), column.tolist(), strict=True))
    assert cells == {(3, 5), (3, 6), (2, 5)}, "22.5 / 4 = 5.6 is nearer to 6, 13 / 4 = 3.25 to 2"
    coarse = found.prediction[found.prediction >= FINE + MIDDLE] - FINE - MIDDLE
    assert set((coarse // 16).tolist()) == {0, 1}, "of 15 × 25, 19 × 19 and 23 × 29"
    assert (found.kind == 2).all()
    assert torch.equal(found.box, target((2, 22.5, 13.0, 5.0, 10.0))[0, :1, 1:].expand(len(found.box), 4))


def test_cells_outside_the_picture_and_empty_slots_answer_for_nothing() -> None:
    corner = assign(target((0, 1.0, 1.0, 5.0, 10.0), (-1, 30.0, 30.0, 9.0, 9.0)), GRID)
    fine = corner.prediction[corner.prediction < FINE]
    assert set((fine % CELLS**2).tolist()) == {0}
    assert (corner.kind == 0).all()


def perfect(wanted: torch.Tensor) -> torch.Tensor:
    """Predictions that are right wherever an object is assigned, and sure of nothing elsewhere."""
    out = torch.zeros(len(wanted), sum(GRID.counts), 5 + len(KINDS))
    out[..., 2:4], out[..., 4:] = 0.1, -20.0
    found = assign(wanted, GRID)
    out[found.sample, found.prediction, :4] = found.box
    out[found.sample, found.prediction, 4] = 20.0
    out[found.sample, found.prediction, 5 + found.kind] = 20.0
    return out


def test_losses_of_a_perfect_prediction_vanish_and_others_grow() -> None:
    wanted = target((1, 20.0, 20.0, 10.0, 14.0), (3, 48.0, 40.0, 18.0, 20.0))
    right = perfect(wanted)
    shifted, blind, confused = right.clone(), right.clone(), right.clone()
    shifted[..., 0] += 0.02
    blind[..., 4] = -20.0
    confused[..., 5:] = confused[..., 5:].flip(-1)
    for loss, worse in ((box_loss(GRID), shifted), (objectness_loss(GRID), blind), (class_loss(GRID), confused)):
        assert loss(right, wanted).item() == pytest.approx(0, abs=1e-3)
        assert loss(worse, wanted).item() > 0.05
    for metric in (AssignedIoU(GRID), MeanAveragePrecision()):
        metric.update(right, wanted)
        assert metric.compute() == pytest.approx(1, abs=1e-4)


def test_objectness_asks_for_the_overlap_that_the_box_reaches() -> None:
    """Its gradient is that of a cross entropy with the IoU, and it leaves the boxes alone."""
    wanted = target((1, 20.0, 20.0, 10.0, 14.0))
    out = perfect(wanted)
    out[..., 2] *= 0.8
    place = int(assign(wanted, GRID).prediction[0])
    reached = iou(out[0, place, :4], wanted[0, 0, 1:]).item()
    assert reached == pytest.approx(0.8, abs=1e-4)
    out[0, place, 4] = float(torch.tensor(reached).logit())
    out.requires_grad_()
    objectness_loss(GRID)(out, wanted).backward()
    assert out.grad is not None
    assert out.grad[0, place, 4].abs() < 1e-7
    assert out.grad[..., :4].abs().max() == 0


def test_pictures_without_an_object_still_have_losses() -> None:
    nothing = torch.full((2, 5, 5), -1.0)
    out = torch.zeros(2, sum(GRID.counts), 5 + len(KINDS), requires_grad=True)
    values = torch.stack([task.loss(out, nothing) for task in scenes_detect.tasks()])
    values.sum().backward()
    assert values.tolist() == [0, pytest.approx(values[1].item()), 0]
    assert values[1] > 0


def test_a_target_and_a_perfect_prediction_are_drawn_alike() -> None:
    render = Renderer(KINDS)
    wanted = target((1, 20.0, 20.0, 10.0, 14.0), (3, 48.0, 40.0, 18.0, 20.0), (-1, 0.0, 0.0, 0.0, 0.0))
    found = perfect(wanted)
    for task, rows in (("objectness", found[0, :, :5]), ("class", found[0])):
        drawn, expected = render(task, rows), render(task, wanted[0])
        assert np.array_equal(drawn, expected)
        assert drawn.shape == (192, 192, 3)
        assert (drawn[3 * 13, 3 * 20] < 255).any(), "the upper side of the first box"
    assert render("box", found[0, :, :4]).min() == 208
    assert np.array_equal(render("input", torch.zeros(3, 64, 64)), np.zeros((192, 192, 3), np.uint8))
    with pytest.raises(WorkloadError, match="no picture"):
        render("smell", wanted)


def test_roi_align_of_a_ramp_is_the_coordinate() -> None:
    """Features that grow by 1 per cell, sampled inside a box, are the bins' centres (in cells, from the first's)."""
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    pooled = roi_align(ramp, torch.tensor([[[0.5, 0.5, 0.5, 0.25]]]), 4)
    assert pooled.shape == (1, 1, 4, 4)
    torch.testing.assert_close(pooled[0, 0], torch.tensor([2.0, 3.0, 4.0, 5.0]).expand(4, 4))


def test_the_best_proposals_are_the_most_probable_that_do_not_overlap() -> None:
    objectness, offsets = torch.full((1, 1, 4, 4), -5.0), torch.zeros(1, 4, 4, 4)
    objectness[0, 0, 1, 1], objectness[0, 0, 1, 2], objectness[0, 0, 3, 3] = 3.0, 2.0, 1.0
    offsets[0, 0, 1, 2] = -0.25  # one cell to the left, with anchors of four cells: the box of cell (1, 1) again
    boxes = best_boxes([(objectness, offsets)], 2, 4.0)
    assert boxes[0].tolist() == [[1.5 / 4, 1.5 / 4, 1, 1], [3.5 / 4, 3.5 / 4, 1, 1]]


def test_a_two_stage_detector_runs_with_both_of_its_traced_parts() -> None:
    model = TwoStage(Proposals((8, 8), 8), RegionHead(8, 3, 16, 4), size=3, regions=5).eval()
    out = model(torch.randn(2, 3, 32, 32))
    assert {name: tuple(value.shape) for name, value in out.items()} == {
        "class": (10, 5), "box": (10, 4, 4), "proposals": (10, 4),
    }  # fmt: skip
