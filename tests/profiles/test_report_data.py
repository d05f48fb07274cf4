"""What the sections are made of: figures as words, verdicts, folded layers, loss curves and pictures."""

import base64
import io
import math
from dataclasses import replace

import numpy as np
import pytest
import report_case as case
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from secateur.profiles.report import accuracy, decisions, layers, pictures, units


def plain(text: str) -> str:
    return text.replace(units.SPACE, " ")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (units.flops(412_345_678), "412 MFLOPs"),
        (units.flops(0), "0 FLOPs"),
        (units.macs(1e9), "1.00 GMACs"),
        (units.count(1_240_000), "1.24 M"),
        (units.count(999), "999"),
        (units.size(1536), "1.50 KiB"),
        (units.size(None), "–"),
        (units.milliseconds(0.03126), "0.0313 ms"),
        (units.milliseconds(math.nan), "–"),
        (units.signed_percent(-60.24), "−60.2 %"),
        (units.signed_percent(0.431), "+0.43 %"),
        (units.signed_percent(-0.0001), "0.00 %"),
        (units.percent(-3.0), "3.00 %"),
        (units.times(1.937), "1.94×"),
        (units.scientific(3.1e-6), "3.1 × 10⁻⁶"),
        (units.scientific(0), "0"),
        (units.seconds(193.4), "3 min 13 s"),
        (units.seconds(7625), "2 h 07 min"),
        (units.seconds(4.2), "4.2 s"),
        (units.number(-0.08893), "−0.08893"),
        (units.number(12345.678), "12,346"),
        (units.moment("2026-11-23T21:40:00+00:00"), "23 November 2026, 21:40 UTC"),
        (units.moment("yesterday"), "yesterday"),
    ],
)
def test_figures_are_written_as_people_read_them(words, expected):
    assert plain(words) == expected


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_any_number_can_be_written(value):
    for unit in units.FILTERS.values():
        if unit is not units.moment:
            assert "nan" not in unit(value)
            assert "e+" not in unit(value)


def test_a_change_is_judged_in_the_direction_of_its_metric():
    changes = {change.name: change for change in accuracy.changes(case.manifest())}
    assert changes["depth"].gain == pytest.approx(-2.1)  # an error that grew
    assert changes["segmentation"].gain == pytest.approx(0.4)
    assert changes["depth"].allowed == pytest.approx(3.0)
    assert all(change.within for change in changes.values())


def test_a_task_beyond_its_tolerance_says_so():
    change = {each.name: each for each in accuracy.changes(case.manifest(tolerance="1%"))}["depth"]
    assert change.within is False
    assert plain(change.words) == "worse by 2.10 %; beyond the allowed drop of 1.00 %"


@pytest.mark.parametrize("tolerance", ["", "what is this"])
def test_without_a_tolerance_there_is_no_verdict(tolerance):
    changes = accuracy.changes(case.manifest(tolerance=tolerance))
    assert {change.within for change in changes} == {None}


def test_bullets_share_one_scale_and_stay_inside():
    data = accuracy.prepare(case.full())
    for row in data["rows"]:
        mark = row["mark"]
        assert 0 <= mark["allowed"] <= data["zero"] <= 100
        assert 0 <= mark["left"] <= mark["left"] + mark["width"] <= 100


names = st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=4).map(".".join), unique=True, max_size=300)


@given(names, st.integers(2, 40))
def test_folding_loses_no_layer_and_keeps_the_limit(names, limit):
    weights = {name: float(len(name)) for name in names}
    folding = layers.fold(names, weights, limit)
    assert list(folding.bar_of) == names
    assert len(set(folding.bar_of.values()) - {folding.rest}) <= limit
    assert bool(folding.words) == (len(names) > limit)


@given(names)
def test_bars_sum_to_the_whole_model(names):
    before = {name: float(index + 1) for index, name in enumerate(names)}
    after = {name: value / 2 for name, value in before.items()}
    chart = layers.chart("FLOPs", "flops", before, after)
    assert sum(bar.before for bar in chart.bars) == pytest.approx(sum(before.values()))
    assert sum(bar.after for bar in chart.bars) == pytest.approx(sum(after.values()))
    drawn = [bar for bar in chart.bars if bar.before_width is not None]
    assert all(0 <= bar.after_width <= bar.before_width <= 100 for bar in drawn)
    assert len(chart.bars) - len(drawn) <= 1


def test_modules_are_summed_where_they_say_enough():
    model = [f"stage{stage}.block{block}.conv{conv}" for stage in range(4) for block in range(4) for conv in range(3)]
    folding = layers.fold(model, dict.fromkeys(model, 1.0))
    assert folding.bar_of["stage1.block2.conv0"] == "stage1.block2"
    assert folding.words == "48 layers, summed by module"


def test_a_flat_model_shows_its_largest_layers_and_sums_the_rest():
    model = [f"layers.{index}" for index in range(500)]
    chart = layers.chart("FLOPs", "flops", {name: index + 1 for index, name in enumerate(model)}, {})
    assert [bar.name for bar in chart.bars] == [*model[470:], "470 others"]
    assert (chart.bars[-1].before, chart.bars[-1].before_width) == (sum(range(471)), None)
    assert chart.bars[-2].before_width == 100
    assert chart.folded == "500 layers: the 30 largest, the rest summed"


def test_a_removed_layer_is_a_bar_that_ends_at_nothing():
    chart = layers.chart("FLOPs", "flops", {"kept": 10, "dead": 5}, {"kept": 4})
    assert [(bar.name, bar.after, bar.change) for bar in chart.bars] == [("kept", 4, -60), ("dead", 0, -100)]


def test_the_loss_curve_is_sorted_and_shows_the_worst_task():
    curve = [
        {"ratio": 0.5, "loss_ratio": {"a": 1.01, "b": 1.3}, "accepted": False},
        {"ratio": 0.25, "loss_ratio": {"a": 1.04, "b": 1.02}, "accepted": True},
    ]
    spark = decisions.sparkline(curve, 1.05)
    assert [(trial.ratio, trial.loss_ratio) for trial in spark.trials] == [(0.25, 1.04), (0.5, 1.3)]
    accepted, refused = spark.trials
    assert refused.y < spark.limit < accepted.y  # y grows downwards
    assert plain(spark.words) == ("25.0 % removed: loss × 1.040, accepted; 50.0 % removed: loss × 1.300, refused")


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 1e6), st.booleans()), max_size=20), st.floats(0, 1))
def test_the_loss_curve_stays_inside_its_box(trials, tau):
    curve = [{"ratio": ratio, "loss_ratio": {"a": loss}, "accepted": ok} for ratio, loss, ok in trials]
    spark = decisions.sparkline(curve, 1 + (tau or 0))
    assert (spark is None) == (not trials)
    for trial in spark.trials if spark else []:
        assert 0 <= trial.x <= 100
        assert 0 <= trial.y <= 28


def test_the_line_of_a_decision_is_its_limit_on_the_loss_where_it_has_one():
    entry = {
        "round": 0, "group": "g", "channels": 8, "kept": 8, "pruned": False, "tau": 0.1,
        "curve": [{"ratio": 0.5, "loss_ratio": {"a": 4.0}, "accepted": False}],
    }  # fmt: skip
    lines = [
        decisions.prepare(replace(case.full(), history={"decisions": [each]}))["rounds"][0]["decisions"][0].spark.limit
        for each in (entry, entry | {"limit": 1.1}, entry | {"limit": 2.5})
    ]
    assert lines[0] == lines[1] != lines[2]


def test_a_decision_reports_the_loss_at_what_was_accepted():
    data = decisions.prepare(case.full())
    first = data["rounds"][0]["decisions"][0]
    assert (first.position, first.before, first.kept) == (1, 64, 60)
    assert first.loss_ratio == pytest.approx(1.049)
    assert [each["number"] for each in data["rounds"]] == [1, 2]


def decoded(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))))


@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 7)])
def test_a_picture_survives_the_trip_into_the_page(shape):
    picture = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert (decoded(pictures.data_uri(picture)) == picture).all()


def test_a_large_picture_is_shrunk_without_mixing_classes():
    classes = np.random.default_rng(0).choice(np.array([0, 100, 200], np.uint8), (400, 300))
    small = decoded(pictures.data_uri(classes, side=100))
    assert small.shape == (100, 75)
    assert set(np.unique(small)) <= {0, 100, 200}


@pytest.mark.parametrize("picture", [np.zeros((4, 4, 3)), np.zeros((3, 4, 4), np.uint8), np.zeros(4, np.uint8)])
def test_what_is_no_picture_is_refused(picture):
    with pytest.raises(ValueError, match="uint8 array"):
        pictures.data_uri(picture)


@pytest.mark.parametrize(("gain", "words"), [(0.004, "unchanged"), (-0.004, "unchanged"), (0.006, "better by 0.01 %")])
def test_a_change_that_shows_as_nothing_is_called_unchanged(gain: float, words: str) -> None:
    assert plain(accuracy.TaskChange("depth", "lower", 1.0, 1.0, gain, None).words) == words
