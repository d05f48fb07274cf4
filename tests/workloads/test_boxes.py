"""Boxes, and the average precision of detections: by hand, and against the definitions written as plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from secateur.workloads.average_precision import (
    COCO_IOUS,
    Detections,
    MeanAveragePrecision,
    average_precision,
    detections,
    matches,
)
from secateur.workloads.boxes import complete_iou, corners, iou, suppress


def box(*values: float) -> Tensor:
    return torch.tensor([values])


def random_boxes(generator: torch.Generator, *shape: int) -> Tensor:
    """Centre and size, overlapping a lot."""
    return torch.rand(*shape, 4, generator=generator) * torch.tensor([0.3, 0.3, 0.5, 0.5]) + 0.2


def test_overlap_by_hand() -> None:
    one, other = box(0.5, 0.5, 1, 1), box(1.0, 0.5, 1, 1)  # half of each: 0.5 / 1.5
    assert iou(one, other).item() == pytest.approx(1 / 3)
    assert iou(one, one).item() == pytest.approx(1)
    assert iou(one, box(3, 3, 1, 1)).item() == 0
    assert corners(other)[0].tolist() == [0.5, 0, 1.5, 1]


def test_complete_iou_by_hand() -> None:
    one = box(0.5, 0.5, 1, 1)
    aside = box(1.5, 0.5, 1, 1)  # no overlap; centres 1 apart in an enclosing box of 2 × 1
    assert complete_iou(one, aside).item() == pytest.approx(-1 / 5)
    wide = box(0.5, 0.5, 2, 1)  # overlap 1/2, same centre, aspect 2 against 1
    aspect = 4 / math.pi**2 * (math.atan(2) - math.atan(1)) ** 2
    assert complete_iou(one, wide).item() == pytest.approx(0.5 - aspect**2 / (0.5 + aspect), abs=1e-6)


def test_complete_iou_pulls_boxes_that_do_not_touch() -> None:
    far = box(0.9, 0.9, 0.1, 0.1).requires_grad_()
    (1 - complete_iou(far, box(0.1, 0.1, 0.1, 0.1))).sum().backward()
    assert far.grad is not None
    assert (far.grad[0, :2] > 0).all(), "towards the other box is down"


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.6, 0.9]))
def test_suppression_is_what_taking_one_box_after_the_other_gives(seed: int, threshold: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes, classes = random_boxes(generator, 2, 12), torch.randint(2, (2, 12), generator=generator)
    found = suppress(boxes, classes, threshold)
    for sample in range(2):
        kept: list[int] = []
        for index in range(12):
            same = [k for k in kept if classes[sample, k] == classes[sample, index]]
            if all(iou(boxes[sample, k], boxes[sample, index]) <= threshold for k in same):
                kept.append(index)
        assert found[sample].nonzero().flatten().tolist() == kept


def test_average_precision_by_hand() -> None:
    """Right, wrong, right of 4 objects: precision 1 up to recall 1/4 (26 of 101 points), 2/3 up to 1/2 (25 more)."""
    scores, right = np.array([0.9, 0.8, 0.7]), np.array([True, False, True])
    assert average_precision(scores, right, 4) == pytest.approx((26 * 1 + 25 * 2 / 3) / 101)
    assert average_precision(scores[::-1], right[::-1], 4) == average_precision(scores, right, 4)
    assert average_precision(scores, np.array([True] * 3), 3) == 1
    assert average_precision(np.empty(0), np.empty(0, bool), 3) == 0


@given(st.integers(0, 10_000))
def test_matching_is_one_detection_after_the_other(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(generator, 2, 8)
    scores = torch.rand(2, 8, generator=generator).sort(dim=1, descending=True).values
    scores[:, 6:] = -1
    found = Detections(boxes, scores, torch.randint(2, (2, 8), generator=generator))
    kinds = torch.randint(-1, 2, (2, 5, 1), generator=generator)
    target = torch.cat([kinds, random_boxes(generator, 2, 5)], dim=2)
    thresholds = [0.2, 0.5, 0.75]
    right = matches(found, target, torch.tensor(thresholds))
    for sample in range(2):
        for row, threshold in enumerate(thresholds):
            taken: set[int] = set()
            for rank in range(8):
                open_slots = {
                    slot: float(iou(boxes[sample, rank], target[sample, slot, 1:]))
                    for slot in range(5)
                    if slot not in taken and target[sample, slot, 0] == found.classes[sample, rank]
                }
                best = max(open_slots, key=open_slots.__getitem__, default=None)
                hit = scores[sample, rank] >= 0 and best is not None and open_slots[best] >= threshold
                if hit and best is not None:
                    taken.add(best)
                assert bool(right[sample, row, rank]) == bool(hit)


def prediction(rows: list[tuple[float, ...]]) -> Tensor:
    """[1, P, 5 + K] from boxes, probabilities of an object and of each class."""
    values = torch.tensor([rows])
    return torch.cat([values[..., :4], values[..., 4:].clamp(1e-4, 1 - 1e-4).logit()], dim=-1)


TARGET = torch.tensor([[[0, 0.25, 0.25, 0.2, 0.2], [1, 0.75, 0.75, 0.2, 0.2], [-1, 0, 0, 0, 0]]])


def test_a_perfect_detector_scores_one_and_a_blind_one_zero() -> None:
    rows = [(0.25, 0.25, 0.2, 0.2, 1, 1, 0), (0.75, 0.75, 0.2, 0.2, 1, 0, 1)]
    for found, expected in ((prediction(rows), 1.0), (prediction([(0.5, 0.5, 0.1, 0.1, 0, 0, 0)]), 0.0)):
        metric = MeanAveragePrecision()
        metric.update(found, TARGET)
        assert metric.compute() == pytest.approx(expected)


def test_a_wrong_class_counts_only_where_classes_do() -> None:
    swapped = prediction([(0.25, 0.25, 0.2, 0.2, 0.5, 0, 1), (0.75, 0.75, 0.2, 0.2, 1, 0, 1)])
    whole, agnostic = MeanAveragePrecision((0.5,)), MeanAveragePrecision((0.5,))
    whole.update(swapped, TARGET)
    agnostic.update(swapped[..., :5], TARGET)
    assert whole.compute() == pytest.approx((0 + 1) / 2, abs=0.01)
    assert agnostic.compute() == 1


def test_a_loose_box_counts_at_low_thresholds_only() -> None:
    """Shifted by a tenth of its side: IoU 0.9 / 1.1 = 0.818, which reaches 7 of COCO's 10 thresholds."""
    shifted = prediction([(0.27, 0.25, 0.2, 0.2, 1, 1, 0)])
    metric = MeanAveragePrecision()
    metric.update(shifted, TARGET[:, :1])
    assert len(COCO_IOUS) == 10
    assert metric.compute() == pytest.approx(0.7)


def test_a_better_box_suppresses_its_double() -> None:
    twice = prediction([(0.25, 0.25, 0.2, 0.2, 0.6, 1, 0), (0.26, 0.25, 0.2, 0.2, 0.9, 1, 0)])
    found = detections(twice)
    assert (found.scores[0] >= 0).sum() == 1
    assert found.boxes[0, 0, 0].item() == pytest.approx(0.26)


def test_no_object_at_all_is_not_a_number() -> None:
    assert math.isnan(MeanAveragePrecision().compute())
