"""The page in a real browser: it opens without a request, charts name their methods, the viewer shows the right voxels.

Needs Chromium or Chrome. PDFRAME_CHROMIUM names one; `browser` in PDFRAME_REQUIRE makes its absence a failure.
Pictures of the page are left in the folder PDFRAME_ARTEFACTS.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from demo import METHODS, PROBLEMS, WINDOW, hounsfield
from matplotlib.image import imread
from safetensors.torch import load_file

from pdframe.bench.rows import read_rows
from pdframe.ct.nifti import read_nifti
from pdframe.report.page import write_page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
#: The machine may be busy; a browser that starts beside other work takes its time.
PATIENCE_MS = 120_000
EVIL = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>"
RDBU = np.array([[5, 48, 97], [33, 102, 172], [67, 147, 195], [146, 197, 222], [209, 229, 240], [247, 247, 247],
                 [253, 219, 199], [244, 165, 130], [214, 96, 77], [178, 24, 43], [103, 0, 31]])  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    """Chromium or Chrome, headless."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.skip("no browser: playwright is not installed (pip install playwright)")
    with sync_playwright() as playwright:
        path = _executable(playwright)
        if path is None:
            pytest.skip("no browser: neither Chromium nor Chrome was found; PDFRAME_CHROMIUM may name one")
        flags = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        opened = playwright.chromium.launch(executable_path=path, args=flags, timeout=PATIENCE_MS)
        yield opened
        opened.close()


def _executable(playwright):
    managed = playwright.chromium.executable_path
    wanted = [os.environ.get("PDFRAME_CHROMIUM", ""), *(shutil.which(name) or "" for name in NAMES), managed]
    return next((path for path in wanted if path and Path(path).is_file()), None)


class Opened:
    """A page in the browser, and everything that it asked for or complained about."""

    def __init__(self, browser, path, **options):
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.requests, self.complaints = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.address = path.as_uri()
        self.page.goto(self.address, timeout=PATIENCE_MS)
        self.settled()

    def expect(self, locator):
        """What is to come true, now or soon. (The page forbids the evaluation of strings, and with it other waits.)"""
        from playwright.sync_api import expect

        expect.set_options(timeout=PATIENCE_MS)
        return expect(locator)

    def settled(self, volumes=4):
        """Waits until every volume of the case is drawn; the first case has four."""
        if self.page.locator("#viewer").count():
            self.expect(self.page.locator('.thumbs canvas[width="24"]')).to_have_count(volumes)

    def part(self, name):
        return self.page.locator(f'[data-part="{name}"]')

    def pixels(self, name):
        """(height, width, 3) of a canvas of the viewer."""
        width, height, values = (
            self.part(name)
            .locator("canvas")
            .evaluate("c => [c.width, c.height, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]]")
        )
        image = np.array(values).reshape(height, width, 4)
        assert (image[..., 3] == 255).all()
        return image[..., :3]

    def slice(self):
        return int(self.part("slice").input_value())

    def press(self, name):
        self.page.get_by_role("button", name=name, exact=True).click()


@pytest.fixture
def artefacts(tmp_path):
    """Where pictures go that a person may look at."""
    folder = Path(os.environ.get("PDFRAME_ARTEFACTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def report(demo_folder, tmp_path_factory):
    return write_page(demo_folder, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def volumes(demo_folder):
    """(truth, method label -> volume) of the first case, (z, y, x) in whole HU, read without the page."""
    (case, *_) = sorted(p.name for p in (demo_folder / "rows").iterdir() if p.name.startswith("8-views"))
    truth = hounsfield(load_file(demo_folder / "truth" / f"{case}.safetensors")["x"])
    found = {
        label: hounsfield(read_nifti(demo_folder / "rows" / case / f"method-{i}" / "volume.nii.gz").x).numpy()
        for i, label in enumerate(METHODS)
        if (demo_folder / "rows" / case / f"method-{i}" / "volume.nii.gz").is_file()
    }
    return truth.numpy(), found


@pytest.fixture(scope="module")
def shared(browser, report):
    opened = Opened(browser, report)
    yield opened
    opened.context.close()


@pytest.fixture
def opened(shared):
    """The page as it is when it has just been opened, without opening a browser's context again."""
    shared.page.reload(timeout=PATIENCE_MS)
    shared.settled()
    return shared


def cut(volume, axis, k):
    """Slice k as it is shown: heads above."""
    image = volume.take(k, axis=axis)
    return image[::-1] if axis else image


def grey(image, low, high):
    level = np.floor(255 * np.clip((image - low) / (high - low), 0, 1) + 0.5)
    return np.repeat(level[..., None], 3, axis=-1)


def diverging(error, span):
    place = (np.clip(error / span, -1, 1) + 1) * 5
    lower = np.minimum(9, np.floor(place)).astype(int)
    colour = RDBU[lower] + (place - lower)[..., None] * (RDBU[lower + 1] - RDBU[lower])
    return np.floor(colour + 0.5)


def shows(opened, volumes, method, axis, k, window=WINDOW, span=200):
    truth, found = cut(volumes[0], axis, k), cut(volumes[1][method], axis, k)
    assert np.array_equal(opened.pixels("truth"), grey(truth, *window))
    assert np.array_equal(opened.pixels("found"), grey(found, *window))
    assert np.array_equal(opened.pixels("error"), diverging(found - truth, span))
    return True


def test_it_opens_without_a_request_or_a_complaint(shared):
    page = shared.page
    assert page.title() == "Sparse views, a demonstration"
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    page.wait_for_timeout(300)
    assert set(shared.requests) == {shared.address}
    assert shared.complaints == []


def test_the_slices_are_those_of_the_volumes_and_scroll(opened, volumes):
    best = "patch3d + DDS"
    assert opened.slice() == 8 and shows(opened, volumes, best, 0, 8)
    before = opened.pixels("found")
    canvas = opened.part("found").locator("canvas")
    canvas.scroll_into_view_if_needed()
    canvas.hover()
    opened.page.mouse.wheel(0, -100)
    opened.expect(opened.part("slice")).to_have_value("9")
    assert shows(opened, volumes, best, 0, 9) and not np.array_equal(opened.pixels("found"), before)
    opened.page.mouse.wheel(0, 100)
    opened.expect(opened.part("slice")).to_have_value("8")
    opened.part("stage").focus()
    for press, k in (("ArrowUp", 9), ("ArrowLeft", 8), ("PageUp", 15), ("ArrowRight", 15), ("Home", 0), ("End", 15)):
        opened.page.keyboard.press(press)
        assert opened.slice() == k and shows(opened, volumes, best, 0, k)
    opened.part("slice").fill("3")
    assert shows(opened, volumes, best, 0, 3)
    assert opened.part("where").text_content() == "axial slice 4 of 16"


def test_each_plane_has_its_slices_and_its_shape(opened, volumes):
    for axis, (name, middle, shape) in enumerate(
        (("axial", 8, 24 * 10 / (20 * 16)), ("coronal", 10, 24 * 10 / (16 * 28)), ("sagittal", 12, 20 * 16 / (16 * 28)))
    ):
        opened.press(name)
        assert opened.slice() == middle and shows(opened, volumes, "patch3d + DDS", axis, middle)
        box = opened.part("truth").locator("canvas").bounding_box()
        assert box["width"] / box["height"] == pytest.approx(shape, rel=0.02)


def test_methods_switch_by_picture_and_by_key(opened, volumes):
    thumbs = opened.part("methods").locator("button")
    assert [b.split("\n")[0] for b in thumbs.all_inner_texts()] == list(METHODS)
    thumbs.filter(has_text="TV").click()
    opened.expect(opened.part("name")).to_have_text("TV")
    assert shows(opened, volumes, "TV", 0, 8)
    assert "TV: PSNR" in opened.part("numbers").text_content()
    assert thumbs.filter(has_text="TV").get_attribute("aria-pressed") == "true"
    opened.part("stage").focus()
    opened.page.keyboard.press("p")  # past CGLS, which has no volume in this case
    opened.expect(opened.part("name")).to_have_text("FDK")
    assert shows(opened, volumes, "FDK", 0, 8)
    for label, why in (("slow", "timeout"), ("CGLS", "out of memory")):
        button = thumbs.filter(has_text=label)
        assert button.is_disabled() and why in button.inner_text()


def test_windows_switch_by_preset_and_by_number(opened, volumes):
    for preset, window in (("lung", (-1350, 150)), ("soft tissue", (-160, 240)), ("bone", (-500, 1300))):
        opened.press(preset)
        assert shows(opened, volumes, "patch3d + DDS", 0, 8, window)
    opened.part("level").fill("100")
    opened.part("width").fill("300")
    opened.part("width").press("Enter")
    assert shows(opened, volumes, "patch3d + DDS", 0, 8, (-50, 250))
    opened.part("span").select_option("50")
    assert shows(opened, volumes, "patch3d + DDS", 0, 8, (-50, 250), 50)
    opened.press("protocol")
    assert shows(opened, volumes, "patch3d + DDS", 0, 8, WINDOW, 50)


def test_one_cursor_reads_all_three_volumes(opened, volumes):
    canvas = opened.part("truth").locator("canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    column, row = 11, 13
    canvas.hover(position={"x": box["width"] * (column + 0.5) / 24, "y": box["height"] * (row + 0.5) / 20})
    truth, found = volumes[0][8, row, column], volumes[1]["patch3d + DDS"][8, row, column]
    assert opened.part("truthValue").text_content() == f"{truth:.0f} HU"
    assert opened.part("foundValue").text_content() == f"{found:.0f} HU"
    assert opened.part("errorValue").text_content() == f"{found - truth:+.0f} HU"


def test_another_case_shows_its_own_volumes(opened, demo_folder):
    options = opened.part("case").locator("option").all_text_contents()
    wanted = "20 views · patient 2 · seed 1"
    assert len(options) == 8 and wanted in options
    opened.part("case").select_option(label=wanted)
    truth = hounsfield(load_file(demo_folder / "truth" / "20-views-patient-2-1.safetensors")["x"]).numpy()
    opened.settled(volumes=5)
    assert np.array_equal(opened.pixels("truth"), grey(cut(truth, 0, 8), *WINDOW))


def test_fronts_name_their_methods(opened):
    page = opened.page
    charts = page.locator("#fronts svg.chart")
    assert charts.count() == 4
    lines = len(METHODS) - 1 + 1  # one method has no result, one has two estimates
    assert [c.locator(".point").count() for c in charts.all()] == [lines] * 4
    point = charts.first.locator('.point[data-told^="TV"] use')
    point.scroll_into_view_if_needed()
    point.hover()
    assert re.match(r"TV\nPSNR, dB: \d+\.\d+ \[.*\]\nseconds: \d", page.locator("#tip").inner_text())
    assert charts.nth(2).locator(".point.dim").count() == lines - 1
    page.locator('#fronts select[name="problem"]').select_option("20 views")
    page.locator('#fronts select[name="metric"]').select_option("rmse_hu")
    assert charts.first.get_attribute("aria-label") == "RMSE, HU against seconds, 20 views"
    entry = page.locator("#fronts .legend button").filter(has_text="FDK")
    entry.click()
    page.mouse.move(0, 0)  # else the pointer alone would pick it
    assert entry.get_attribute("aria-pressed") == "true"
    assert charts.first.locator(".point:not(.dim)").count() == 1


def test_curves_and_calibration_are_drawn(opened):
    page = opened.page
    curves = page.locator("#curves .point")
    methods, cases = len(METHODS) - 1, 4
    assert curves.count() == methods * cases - 1  # one row failed
    page.locator('#curves select[name="scan"]').select_option("patient 2, seed 1")
    assert curves.count() == methods
    page.locator('#curves select[name="cost"]').select_option("network_flops")
    assert curves.count() == 2  # the others cost no network
    calibrated = page.locator("#calibrated .chart")
    told = [calibrated.nth(i).get_attribute("aria-label") for i in range(calibrated.count())]
    assert told == ["Coverage of central intervals, 8 views", "Error by predicted deviation, 8 views"]
    assert page.locator("#calibrated .point").count() == 2
    errors = calibrated.nth(1).locator(".line").get_attribute("d")
    assert errors.count("L") == 9  # ten bins


def test_commands_settings_and_citations_can_be_copied(browser, report):
    opened = Opened(browser, report, permissions=["clipboard-read", "clipboard-write"])
    button = opened.page.locator("#cite .copy button")
    opened.page.evaluate("() => { window.setTimeout = () => 0 }")  # what the button says then stays
    button.click()
    opened.expect(button).not_to_have_text("Copy")
    said = button.inner_text()
    assert said in ("copied", "selected, press Ctrl+C")
    taken = "getSelection().toString()" if said != "copied" else "navigator.clipboard.readText()"
    assert "@inproceedings{chung2024decomposed," in opened.page.evaluate(taken)
    opened.context.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_the_screen_shows_what_the_canvases_hold(browser, report, artefacts, width, scheme):
    options = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme, "reduced_motion": "reduce"}
    opened, name = Opened(browser, report, **options), f"report-{width}-{scheme}"
    opened.page.screenshot(path=artefacts / f"{name}-top.png")
    opened.page.get_by_role("link", name="Slices").click()
    opened.page.screenshot(path=artefacts / f"{name}-viewer.png")
    opened.page.evaluate("document.querySelectorAll('.frame :not(canvas)').forEach((e) => (e.style.display = 'none'))")
    for part in ("truth", "found", "error"):
        shown = opened.part(part).locator("canvas").screenshot(path=artefacts / f"{name}-{part}.png")
        held, shown = opened.pixels(part), (255 * imread(BytesIO(shown))[..., :3]).round()
        rows, columns = (
            ((np.arange(held.shape[i]) + 0.5) * shown.shape[i] / held.shape[i]).astype(int) for i in (0, 1)
        )
        assert np.array_equal(shown[np.ix_(rows, columns)], held), part
    opened.context.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_it_fits_and_can_be_read(browser, report, width, scheme):
    opened = Opened(browser, report, viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = opened.page
    page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    colours = page.evaluate(
        """() => Object.fromEntries(["paper", "wash", "ink", "soft", "accent", "bad",
             ...Array.from({ length: 10 }, (_, i) => `m${i}`)].map((name) => {
               const e = document.body.appendChild(document.createElement("i"));
               e.style.color = `var(--${name})`;
               const rgb = getComputedStyle(e).color.match(/[0-9]+/g).map(Number);
               e.remove();
               return [name, rgb];
             }))"""
    )
    assert (sum(colours["paper"]) < 384) == (scheme == "dark")
    for name in ("ink", "soft", "accent", "bad"):  # WCAG 2, level AA: 4.5 for text, 3 for graphics
        assert contrast(colours[name], colours["paper"]) >= 4.5, name
    assert contrast(colours["ink"], colours["wash"]) >= 4.5
    assert len({tuple(colours[f"m{i}"]) for i in range(10)}) == 10  # a variable that is missing would be ink
    for i in range(10):
        assert contrast(colours[f"m{i}"], colours["paper"]) >= 3, i
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, canvas, [role=img], [role=group]")]
             .filter((e) => !(e.getAttribute("aria-label") || e.labels?.length || e.textContent.trim() ||
                              e.closest(".thumbs button")))
             .map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert nameless == []
    assert opened.complaints == []
    opened.context.close()


def test_strings_of_a_bench_run_nowhere(browser, demo_folder, tmp_path):
    rows = copy.deepcopy(read_rows(demo_folder))
    for row in rows:
        row |= {key: f"{row[key]}{EVIL}" for key in ("problem", "scan", "method", "reason", "command")}
        row["config"] = {"label": EVIL, "name": EVIL}
    opened = Opened(browser, write_page(rows, tmp_path / "evil.html"))
    page = opened.page
    page.locator("#fronts .legend button").first.click()
    page.locator("#fronts .point use").first.dispatch_event("pointerover")
    assert EVIL in page.locator("#tip").inner_text()
    assert page.evaluate("window.hacked") is None
    assert page.locator("main script, main img").count() == 0
    assert opened.complaints == [] and set(opened.requests) == {opened.address}
    opened.context.close()


def contrast(one, other):
    """Contrast ratio of two sRGB colours (WCAG 2.2)."""

    def luminance(rgb):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_demo_has_what_these_tests_count_on():
    assert list(PROBLEMS) == ["8 views", "20 views"] and len(METHODS) == 6
