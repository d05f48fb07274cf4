"""The page in a real browser: nothing fetched, no error, no sideways scrolling on a phone, readable in the dark."""

from pathlib import Path

import pytest
import report_case as case

from secateur.profiles.report import write_report

pytestmark = pytest.mark.browser
QUIET = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
SIZES = {"desktop": (1280, 900), "tablet": (800, 1000), "phone": (390, 844), "small phone": (320, 568)}


@pytest.fixture(scope="module")
def browser(chromium):
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=chromium, args=QUIET)
        yield running
        running.close()


@pytest.fixture(scope="module", params=["full", "hostile", "long"])
def report(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    reports = {
        "full": case.full,
        "hostile": lambda: case.hostile("<script>document.title = 'hacked'</script><img src=x onerror=alert(1)>"),
        "long": lambda: case.hostile("unbroken" * 40),
    }
    write_report(path, reports[request.param]())
    return path


class Visit:
    """A page with a record of all it asked for and complained of."""

    def __init__(self, browser, path: Path, size: tuple[int, int], scheme: str = "light") -> None:
        width, height = size
        self.page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message) or dialog.dismiss())
        self.page.goto(path.as_uri())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.page.close()


def test_nothing_is_fetched_and_nothing_goes_wrong(browser, report):
    with Visit(browser, report, SIZES["desktop"]) as visit:
        visit.page.wait_for_load_state("networkidle")
        fetched = [url for url in visit.requests if not url.startswith("data:")]
        assert fetched == [report.as_uri()]
        assert visit.complaints == []
        assert visit.page.title() != "hacked"
        assert visit.page.evaluate("document.scripts.length") == 0


def test_every_picture_is_drawn(browser, report):
    with Visit(browser, report, SIZES["desktop"]) as visit:
        broken = "[...document.images].filter(image => !image.complete || image.naturalWidth === 0).length"
        assert visit.page.evaluate(broken) == 0
        assert visit.page.evaluate("document.images.length") > 0


@pytest.mark.parametrize("size", SIZES)
def test_the_page_never_scrolls_sideways(browser, report, size):
    with Visit(browser, report, SIZES[size]) as visit:
        visit.page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_background(browser, report, scheme):
    """Contrast of the body text, and of plots' text, as WCAG counts it: at least 4.5."""
    with Visit(browser, report, SIZES["desktop"], scheme) as visit:
        paper = luminance(visit.page, "body", "backgroundColor")
        assert (paper < 0.1) == (scheme == "dark")
        for selector, style in (("body", "color"), ("small", "color"), (".plot text", "fill"), (".badge", "color")):
            ink = luminance(visit.page, selector, style)
            assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 4.5, selector


def luminance(page, selector: str, style: str) -> float:
    """Relative luminance (WCAG 2.2) of a computed colour."""
    css = page.evaluate(f"getComputedStyle(document.querySelector({selector!r})).{style}")
    channels = [int(value) / 255 for value in css[css.index("(") + 1 : -1].split(",")[:3]]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
