"""Real digits, in pairs that share nothing between splits."""

import torch

from secateur.workloads import digits


def test_no_digit_is_in_two_splits_and_all_are_used() -> None:
    ranges = [range(first, last) for first, last, _ in digits.SPLITS.values()]
    used = [index for one in ranges for index in one]
    assert sorted(used) == list(range(1797))
    assert sum(len(digits.digits(name)[1]) for name in digits.SPLITS) == 1797


def test_pairs_are_the_two_digits_and_always_the_same() -> None:
    images, labels = digits.digits("test")
    inputs, targets = digits.loader("test").stored
    assert inputs.shape[1:] == (1, digits.CANVAS, digits.CANVAS)
    edge = digits.CANVAS - 8
    for canvas, left, right in list(zip(inputs[:, 0], targets["left"], targets["right"], strict=True))[:50]:
        assert any(torch.equal(canvas[:edge, :8], image[:edge]) for image in images[labels == left])
        assert any(torch.equal(canvas[-edge:, -8:], image[-edge:]) for image in images[labels == right])
    assert torch.equal(inputs, digits.loader("test").stored[0])
