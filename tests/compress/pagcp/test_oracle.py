"""The oracle judges on chunks of the calibration data, on no more of them than a decision takes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from published_loop import plain_losses

from secateur.compress.dataflow import trace
from secateur.compress.dataflow.groups import Keep
from secateur.compress.pagcp.calibration import calibration_batches, chunked
from secateur.compress.pagcp.oracle import Oracle
from secateur.compress.pagcp.prefix import Prefix
from secateur.compress.pagcp.sampling import Estimate, Losses, Standing, exactly, means, student
from secateur.compress.pagcp.session import Limits
from secateur.core.task import Workload

GROUP = "deep.0"
TASKS = ("quadrant", "brightness")


def oracle(squares: Workload, confidence: float | None, samples: int = 256) -> Oracle:
    chunks = chunked(tiny.batches(2, samples // 16), 64)
    return Oracle(trace(squares.model, chunks[0][0]), chunks, squares.tasks, 2**28, confidence=confidence)


def standing(judge: Oracle, keep: Keep | None = None) -> Standing:
    """Of the whole model, or one without some channels, by all chunks."""
    judge.reference = list(judge.chunk_losses(keep or {}))
    return exactly(means(judge.reference))


def at_most(losses: Losses) -> Limits:
    return lambda current: losses


def test_chunks_hold_every_sample_once_in_a_mixed_order() -> None:
    batches = [
        (torch.arange(6 * i, 6 * i + 6)[:, None].float(), {"t": torch.arange(6 * i, 6 * i + 6)}) for i in range(4)
    ]
    chunks = chunked(batches, 6)
    inputs = torch.cat([chunk[0].flatten() for chunk in chunks])
    assert [len(chunk[0]) for chunk in chunks] == [4] * 6
    assert sorted(inputs.tolist()) == list(range(24))
    assert inputs.tolist() != list(range(24))
    for values, targets in chunks:
        assert values.flatten().tolist() == targets["t"].tolist()


def test_ragged_batches_stay_whole() -> None:
    batches = [(torch.zeros(2, 3), {"boxes": [torch.zeros(1, 4), torch.zeros(5, 4)]}) for _ in range(3)]
    assert chunked(batches, 6) == batches


def test_batches_of_another_size_are_left_out() -> None:
    batches = [(torch.zeros(size, 3), {}) for size in (4, 4, 2)]
    assert [len(inputs) for inputs, _ in calibration_batches(batches, None)] == [4, 4]
    assert len(calibration_batches(batches, 3)) == 1


def test_a_verdict_on_all_samples_is_what_the_cut_model_loses(squares: Workload) -> None:
    judge = oracle(squares, None)
    current = standing(judge)
    keep = list(range(3, 16))
    cut = judge.groups.cut({GROUP: keep})
    expected = plain_losses(cut, list(judge.batches), squares.tasks)
    verdict = judge.at({}, GROUP, current).judge(keep, at_most(dict.fromkeys(expected, 1e9)))
    assert verdict.accepted
    assert verdict.chunks == len(judge.batches)
    assert verdict.losses == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("factor", "accepted"), [(3.0, True), (0.3, False)])
def test_a_clear_case_is_decided_on_few_chunks_as_on_all(squares: Workload, factor: float, accepted: bool) -> None:
    keep = list(range(2, 16))
    exact, quick = oracle(squares, None), oracle(squares, 3.0)
    current = standing(exact)
    standing(quick)
    loss = plain_losses(exact.groups.cut({GROUP: keep}), list(exact.batches), squares.tasks)
    limits = {task: factor * value for task, value in loss.items()}
    verdicts = [judge.at({}, GROUP, current).judge(keep, at_most(limits)) for judge in (exact, quick)]
    assert [verdict.accepted for verdict in verdicts] == [accepted, accepted]
    assert verdicts[1].chunks < len(quick.batches) / 2


def test_an_open_case_is_looked_at_to_the_end(squares: Workload) -> None:
    judge, keep = oracle(squares, 3.0), list(range(2, 16))
    current = standing(judge)
    loss = plain_losses(judge.groups.cut({GROUP: keep}), list(judge.batches), squares.tasks)
    verdict = judge.at({}, GROUP, current).judge(
        keep, at_most({task: value * (1 + 1e-4) for task, value in loss.items()})
    )
    assert verdict.accepted
    assert verdict.chunks > len(judge.batches) / 2


def test_a_guess_is_not_run_again_when_it_is_proven(squares: Workload) -> None:
    judge, keep = oracle(squares, None), list(range(4, 16))
    session = judge.at({}, GROUP, standing(judge))
    before = judge.spent.evaluations
    session.look(keep)
    session.judge(keep, at_most({"quadrant": 1e9, "brightness": 1e9}))
    assert judge.spent.evaluations - before == len(judge.batches)


def test_a_loss_that_is_not_finite_is_refused_at_once(squares: Workload) -> None:
    broken = replace(squares.tasks[1], loss=lambda prediction, target: prediction.mean() * float("nan"))
    judge = oracle(replace(squares, tasks=(squares.tasks[0], broken)), 3.0)
    judge.tasks = (squares.tasks[0], broken)
    verdict = judge.at({}, GROUP, exactly({"quadrant": 1.0, "brightness": 1.0})).judge(
        [0, 1], at_most({"quadrant": 9.0, "brightness": 9.0})
    )
    assert not verdict.accepted
    assert verdict.chunks == 1


def test_the_cache_follows_the_choice_it_is_asked_for_and_keeps_to_its_limit(squares: Workload) -> None:
    judge = oracle(squares, None, samples=32)
    whole, some = {}, {GROUP: np.arange(5, 16), "stem.0": np.arange(8)}
    bare = Prefix(
        judge.groups, [inputs for inputs, _ in judge.batches], judge.prefix.needed, judge.choice, lambda *_: None, 0
    )
    for keep in (whole, some, whole):
        for cached, computed in zip(
            judge.prefix.outputs(1, judge.choice(keep), TASKS), bare.outputs(1, judge.choice(keep), TASKS), strict=True
        ):
            for one, other in zip(cached, computed, strict=True):
                torch.testing.assert_close(one, other)
    assert list(judge.prefix.filled) == [1]
    assert not bare.filled


def test_what_an_accepted_candidate_computed_is_the_cache_afterwards(squares: Workload) -> None:
    judge, kept = oracle(squares, None), list(range(4, 16))
    session = judge.at({}, GROUP, standing(judge))
    session.judge(kept, at_most({"quadrant": 1e9, "brightness": 1e9}))
    session.judge([0], at_most({"quadrant": 0.0, "brightness": 0.0}))
    session.close(kept)
    spent, choice = judge.spent.forward_flops, judge.choice({GROUP: np.array(kept)})
    bare = Prefix(
        judge.groups, [inputs for inputs, _ in judge.batches], judge.prefix.needed, judge.choice, lambda *_: None, 0
    )
    for number in range(len(judge.batches)):
        for one, other in zip(
            judge.prefix.outputs(number, choice, TASKS), bare.outputs(number, choice, TASKS), strict=True
        ):
            for cached, computed in zip(one, other, strict=True):
                assert torch.equal(cached, computed)
    assert judge.spent.forward_flops == spent, "nothing had to be run again"
    assert judge.prefix.held == 0, "what was not accepted is not held"


@pytest.mark.parametrize(("freedom", "quantile"), [(5, 3.816), (10, 3.042), (1000, 2.5045)])
def test_few_chunks_must_be_further_away(freedom: int, quantile: float) -> None:
    """The quantiles of Student's t at 0.99379, the share of a normal distribution below 2.5 (from scipy)."""
    assert student(2.5, freedom) == pytest.approx(quantile, rel=0.01)


def test_a_settled_task_is_run_no_more_and_follows_when_it_is_needed_again(squares: Workload) -> None:
    judge, kept, name = oracle(squares, 2.5), list(range(9)), "stem.0"
    session, flops = judge.at({}, name, standing(judge)), []
    loss = plain_losses(judge.groups.cut({name: kept}), list(judge.batches), squares.tasks)
    limits = at_most({"quadrant": 1e9, "brightness": loss["brightness"] * (1 + 1e-4)})
    while session.verdict(kept, limits) is None:
        before = judge.spent.forward_flops
        session.look(kept)
        flops.append(judge.spent.forward_flops - before)
    assert flops[-1] < flops[0]
    assert session.standing(kept)["quadrant"].chunks < session.standing(kept)["brightness"].chunks
    session.close(kept)
    choice = judge.choice({name: np.array(kept)})
    bare = Prefix(
        judge.groups, [inputs for inputs, _ in judge.batches], judge.prefix.needed, judge.choice, lambda *_: None, 0
    )
    for number in range(len(judge.batches)):
        for cached, computed in zip(
            judge.prefix.outputs(number, choice, TASKS)[0], bare.outputs(number, choice, TASKS)[0], strict=True
        ):
            torch.testing.assert_close(cached, computed)


def test_one_task_above_its_limit_refuses(squares: Workload) -> None:
    judge, kept = oracle(squares, None), list(range(4, 16))
    session = judge.at({}, GROUP, standing(judge))
    assert not session.judge(kept, at_most({"quadrant": 1e9, "brightness": 0.0})).accepted


def test_a_limit_follows_what_is_known_of_the_model_as_pruned_so_far(squares: Workload) -> None:
    """A loss that was known from few chunks, and wrongly, is corrected by the chunks that a candidate is seen on."""
    judge, kept = oracle(squares, 2.5), list(range(4, 16))
    right = standing(judge)
    wrong = {task: Estimate(3 * known.value, 1.0, 1) for task, known in right.items()}
    session = judge.at({}, GROUP, wrong)
    session.judge(kept, lambda current: {task: 1.0001 * loss for task, loss in current.items()})
    for task, known in session.standing().items():
        assert known.value == pytest.approx(right[task].value, rel=1e-6)
