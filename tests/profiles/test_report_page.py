"""The page as a document: complete, self-contained, escaped, and without the sections that have no data."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import report_case as case
from elastic_case import random_table

import secateur.profiles.report
from secateur.core.costs import Latency, Profile
from secateur.core.errors import OutputError
from secateur.profiles.report import Report, Sample, write_report
from secateur.profiles.report.write import SECTIONS, render

VOID = {"meta", "link", "img", "br", "wbr", "input", "hr"}
SECRETIVE = {"src", "href", "srcset", "action", "data", "poster", "xlink:href", "formaction", "background"}
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><script>alert(1)</script>",
    "{{ 7 * 7 }}{% raw %}",
    "tiefe & höhe – 深度 🌱 $x^2$ \\frac",
    "a" * 5000,
    "\x00\x1b[31m\ud800",
]


STATIC = [section.key for section in SECTIONS if section.key not in ("widths", "experts")]
"""Sections of a pruned model; elastic models and extracted experts have one more."""


class Page(HTMLParser):
    """What tests look at: tags with attributes, text by section, and whether every tag is closed."""

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text: dict[str, str] = {}
        self._section = ""
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag == "section":
            self._section = dict(attrs)["id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text[self._section] = self.text.get(self._section, "") + data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def words(self, section: str) -> str:
        return " ".join(self.text[section].split())


@pytest.fixture(scope="module")
def full() -> str:
    return render(case.full())


def test_every_section_is_there_and_in_the_contents(full):
    page = Page(full)
    keys = list(STATIC)
    assert [each["id"] for each in page.all("section")] == keys
    assert [each["href"] for each in page.all("a")] == ["#summary", *(f"#{key}" for key in keys)]
    assert page.open == []


def test_the_page_is_a_file_written_whole_and_small(tmp_path):
    path = tmp_path / "deep" / "report.html"
    write_report(path, case.full())
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert path.stat().st_size < 2_000_000
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]


def test_a_file_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        write_report(tmp_path / "file" / "report.html", case.full())


def test_the_same_report_gives_the_same_bytes(full):
    assert render(case.full()) == full


@pytest.mark.parametrize("report", [case.full, lambda: case.hostile(HOSTILE[0])])
def test_nothing_is_fetched_and_nothing_runs(report):
    markup = render(report())
    page = Page(markup)
    assert "script" not in {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in SECRETIVE & set(attributes):
            assert attributes[name].startswith(("#", "data:image/png;base64,")) or attributes[name] == "data:,"
    assert "@import" not in markup
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", markup))
    policy = next(each["content"] for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert "script-src" not in policy


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_are_shown_as_they_are_and_mean_nothing(text, tmp_path):
    harmless, page = Page(render(case.hostile("name"))), Page(render(case.hostile(text)))

    def shape(page: Page) -> list[tuple[str, ...]]:
        return [(tag, *attributes) for tag, attributes in page.tags if tag not in ("wbr", "style")]

    assert shape(page) == shape(harmless)
    shown = text.encode("utf-8", "replace").decode()
    write_report(tmp_path / "report.html", case.hostile(text))
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    if "\x00" not in text:
        assert page.all("title") == [{}]
        for section in ("summary", "accuracy", "samples", "pareto", "layers", "decisions", "tuning", "reproduce"):
            assert " ".join(shown.split()) in page.words(section)


def test_identifiers_are_unique_and_references_hold(full):
    page = Page(full)
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    references = re.findall(r'(?:href="|url\()#([\w-]+)', full) + re.findall(r'aria-labelledby="([\w-]+)"', full)
    assert set(references) <= set(identifiers)


def test_every_picture_has_words(full):
    page = Page(full)
    images = page.all("img")
    assert len(images) == 6 * (1 + 4 * 3)
    assert len({image["alt"] for image in images}) == len(images)
    drawings = [attributes for attributes in page.all("svg") if attributes.get("aria-hidden") != "true"]
    assert drawings
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in drawings)


def test_text_of_plots_is_text(full):
    assert "chosen" in Page(full).words("pareto")
    assert "FLOPs, % of the original" in Page(full).words("pareto")


def test_sections_without_data_are_left_out():
    manifest = case.manifest(
        points=case.manifest().points[:1], chosen=0, artefacts=[], oracle={}, settings={}, command="", tolerance=""
    )
    page = Page(render(Report("bare", manifest)))
    assert [each["id"] for each in page.all("section")] == ["summary", "accuracy", "reproduce"]
    assert page.open == []


@pytest.mark.parametrize(
    ("missing", "gone"),
    [
        ({"samples": ()}, {"samples"}),
        ({"history": {}}, {"decisions", "tuning"}),
        ({"history": {"decisions": [], "fine_tuning": []}}, {"decisions", "tuning"}),
        ({"profiles": ()}, {"targets"}),
        ({"layers_after": (), "profiles_before": ()}, {"layers"}),
        ({"manifest": case.manifest(metrics_before={})}, {"accuracy"}),
    ],
)
def test_each_section_can_be_missing_alone(missing, gone):
    page = Page(render(replace(case.full(), **missing)))
    assert set(STATIC) - {each["id"] for each in page.all("section")} == gone


def test_the_headline_says_whether_the_budget_was_met():
    met = Page(render(case.full())).words("summary")
    assert "✓ Budget met" in met
    assert "✓ Every task within its tolerance" in met
    missed = case.manifest(budget_met=False, misses=["flops<=30%: reached 38.0%"], tolerance="1%")
    words = Page(render(replace(case.full(), manifest=missed))).words("summary")
    assert "✗ Budget not met" in words
    assert "✗ Beyond tolerance: depth" in words
    assert "flops<=30%: reached 38.0%" in words
    assert "✓" not in words


def test_the_table_shows_every_figure_with_its_source(full):
    words = Page(full).words("summary")
    for expected in (
        "segmentation↑ higher is better 0.8123 0.8155 +0.40 %better",
        "depth↓ lower is better 0.08710 0.08893 +2.10 %worse, tolerated",
        "FLOPs1 MAC = 2 FLOPs 412 MFLOPs 157 MFLOPs −62.0 %",
        "MACs 206 MMACs 78.3 MMACs −62.0 %",
        "Parameters 1.24 M 471 K −62.0 %",
        "cpuONNX Runtime, 1 thread, measured 4.21 ms 2.10 ms 2.00×speed-up",
        "mobile:pixel-6latency model, predicted ± 12.0 % 3.30 ms 1.65 ms 2.00×speed-up",
    ):
        assert expected in words


def test_a_latency_of_which_nothing_says_how_it_was_found_is_not_shown():
    points = [point.model_copy(update={"latency_ms": {"cpu": 2.5}}) for point in case.manifest().points]
    report = Report("quiet", case.manifest(points=points))
    assert "2.50 ms" not in Page(render(report)).words("summary")


def test_what_is_not_finite_or_not_known_is_a_dash_and_never_a_number():
    latency = Latency(math.nan, math.inf, math.nan)
    profile = Profile("cpu", "ONNX Runtime", "measured", latency, energy_mj=math.nan, layers=())
    report = replace(case.full(), manifest=case.manifest(metrics_before={"depth": math.nan}), profiles=[profile])
    words = " ".join(Page(render(report)).text.values())
    assert not re.search(r"\b(nan|inf|None)\b", words)


def test_unavailable_targets_say_why_and_how_to_get_them(full):
    words = Page(full).words("targets")
    assert "gpu TensorRT no NVIDIA GPU here How to get it: run it where there is one" in words


def test_the_search_cost_stands_beside_the_published_loop(full):
    words = Page(full).words("reproduce")
    assert "21.0 TFLOPs of forward passes; the published loop would have spent 190 TFLOPs, 9.05× as much" in words
    assert "23 November 2026, 21:40 UTC" in words
    assert 'secateur compress scenes --method pagcp --budget "flops<=40%"' in words


def test_a_model_of_five_hundred_layers_stays_readable():
    names = [f"stage{index // 25}.block{index % 25}.conv" for index in range(500)]
    report = replace(
        case.full(),
        layers_before=case.layers(names=names),
        layers_after=case.layers(0.3, names),
        history=case.history(groups=500, rounds=1),
        samples=(),
        profiles=(),
    )
    markup = render(report)
    page = Page(markup)
    bars = [attributes for attributes in page.all("svg") if attributes.get("aria-hidden") == "true"]
    assert 6 <= len(bars) <= 31
    assert "500 layers, summed by module" in page.words("layers")
    assert "Round 1: 500 groups" in page.words("decisions")
    assert len(markup) < 2_000_000


@pytest.mark.parametrize("side", [16, 64, 480])
def test_pictures_keep_the_page_below_two_megabytes(tmp_path, side):
    noise = np.random.default_rng(0).integers(0, 256, (side, side * 4 // 3, 3), dtype=np.uint8)
    tasks = {f"task {index}": {"label": noise, "before": noise, "after": noise} for index in range(4)}
    write_report(tmp_path / "report.html", replace(case.full(), samples=[Sample(noise, tasks)] * 6))
    assert (tmp_path / "report.html").stat().st_size < 2_000_000


def test_templates_and_style_are_package_data():
    folder = Path(secateur.profiles.report.__file__).parent
    assert {section.key + ".html.j2" for section in SECTIONS} <= {path.name for path in folder.glob("*.html.j2")}
    assert (folder / "report.css").is_file()


def test_latencies_of_widths_say_whether_they_were_measured():
    """Of several targets a measured one is shown; a predicted figure is never called measured."""
    table = random_table()
    guess = replace(table.latency["cpu"], source="predicted", machine="a model of it")
    only = {"fpga:zcu102": guess}
    words = Page(render(replace(case.full(), elastic=replace(table, latency=only)))).words("widths")
    assert "Latency on fpga:zcu102 predicted" in words
    assert "are predicted (a model of it); such predictions are typically 5 % off" in words
    assert "measured" not in words
    both = Page(render(replace(case.full(), elastic=replace(table, latency=only | table.latency)))).words("widths")
    assert "Latency on cpu sum of measured parts" in both
    assert "zcu102" not in both


def test_every_colour_of_the_screen_has_one_on_paper() -> None:
    """Else what a dark screen sets stays, and dark print lies on dark ground."""
    style = (Path(secateur.profiles.report.__file__).parent / "report.css").read_text(encoding="utf-8")
    screen, dark, paper = (
        set(re.findall(r"(--[\w-]+):", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)
    )
    assert screen == dark == paper
