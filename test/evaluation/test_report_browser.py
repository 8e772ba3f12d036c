# SPDX-License-Identifier: Apache-2.0
"""The report in a real browser: no network requests, mouse and touch control of the cloud, its orientation."""

from __future__ import annotations

import numpy as np
import pytest
from browser import CHROMIUM, Browser

from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.evaluation.evaluator import Evaluator
from sqsegv3_ros.evaluation.html_report import Sample, build_report
from sqsegv3_ros.viewing.pictures import ERROR_COLORS

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")

CAR, PERSON, POLE, WALL, FENCE = map(SEMANTIC_KITTI.index, ("car", "person", "pole", "building", "fence"))


def block(x: float, y: float) -> np.ndarray:
    steps = np.linspace(-1, 1, 12)
    grid = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3) + [x, y, 0]
    return np.concatenate([grid, np.full((len(grid), 1), 0.3)], axis=1).astype(np.float32)


def plate(x: float) -> np.ndarray:
    """A dense upright square, 4 m wide, across the way ahead."""
    across, up = np.meshgrid(np.linspace(-2, 2, 60), np.linspace(-2, 2, 60))
    return np.stack([np.full(3600, x), across.ravel(), up.ravel(), np.zeros(3600)], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Persons ahead on the left, poles (predicted as cars) on the right; a wall; a wall with a fence behind it."""
    left, right = block(20, 8), block(20, -8)
    points = np.concatenate([left, right])
    truth = np.repeat([PERSON, POLE], [len(left), len(right)])
    prediction = np.where(truth == POLE, CAR, PERSON)
    evaluator = Evaluator(SEMANTIC_KITTI)
    evaluator.add("00/000000", points, prediction, truth)
    summary = evaluator.summary() | {"latency_ms": [50.0, 52.0, 61.0]}
    samples = [Sample("00/000000", points, prediction, truth)]
    wall, fence = plate(14), plate(16)
    for name, plates, labels in (("wall", [wall], [WALL]), ("wall and fence", [wall, fence], [WALL, FENCE])):
        both = np.repeat(labels, len(wall))
        samples.append(Sample(name, np.concatenate(plates), both, both))
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(build_report(summary, samples))
    return path.as_uri()


@pytest.fixture(scope="module")
def chromium():
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture
def browser(chromium, page):
    chromium.open(page)
    chromium.wait_for("+document.getElementById('cloud')?.dataset.drawn > 0")
    chromium.js("document.getElementById('cloud').scrollIntoView({block: 'center'})")
    yield chromium
    assert chromium.problems() == []


def settle(browser: Browser) -> None:
    browser.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


COUNT_COLOR = """((r, g, b) => {
    const canvas = document.getElementById("cloud");
    const {data, width} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let count = 0, total = 0;
    for (let i = 0; i < data.length; i += 4)
        if (data[i] === r && data[i + 1] === g && data[i + 2] === b) { count++; total += (i / 4) % width; }
    return [count, total];
})"""


def pixels_of(browser: Browser, color) -> tuple[int, float]:
    """Number of pixels of the canvas with a colour, and their mean column."""
    settle(browser)
    red, green, blue = map(int, color)
    count, total = browser.js(f"{COUNT_COLOR}({red}, {green}, {blue})")
    return count, total / max(count, 1)


def colors(*labels: int) -> list:
    return [SEMANTIC_KITTI.colors[label] for label in labels]


def middle(browser: Browser) -> tuple[float, float]:
    return tuple(
        browser.js(
            "(() => { const r = document.getElementById('cloud').getBoundingClientRect();"
            " return [r.left + r.width / 2, r.top + r.height / 2]; })()"
        )
    )


def drag(browser: Browser, dx: float, dy: float) -> None:
    x, y = middle(browser)
    browser.mouse("mousePressed", x, y, button="left", buttons=1, clickCount=1)
    for step in (0.5, 1):
        browser.mouse("mouseMoved", x + dx * step, y + dy * step, button="left", buttons=1)
    browser.mouse("mouseReleased", x + dx, y + dy, button="left", clickCount=1)


def test_points_left_of_the_sensor_are_drawn_on_the_left(browser):
    person, car = (pixels_of(browser, color) for color in colors(PERSON, CAR))
    assert person[0] > 100
    assert car[0] > 100
    assert person[1] < car[1]


def test_dragging_rotates_the_cloud_and_a_double_click_resets_it(browser):
    person, car = (pixels_of(browser, color) for color in colors(PERSON, CAR))
    drag(browser, 120, 0)
    for color, before in zip(colors(PERSON, CAR), (person, car), strict=True):
        assert pixels_of(browser, color)[1] > before[1] + 20  # points in front follow the mouse
    browser.js("document.getElementById('cloud').dispatchEvent(new MouseEvent('dblclick'))")
    assert pixels_of(browser, colors(PERSON)[0]) == person


def test_half_a_turn_swaps_left_and_right(browser):
    person, car = colors(PERSON, CAR)
    drag(browser, 3.14159 / 0.006 * 0.5, 0)
    drag(browser, 3.14159 / 0.006 * 0.5, 0)
    assert pixels_of(browser, person)[1] > pixels_of(browser, car)[1]


def test_another_scan_can_be_chosen_and_near_points_hide_far_ones(browser):
    wall, fence = colors(WALL, FENCE)
    choose = (
        "(() => { const s = document.getElementById('cloud-scan'); s.selectedIndex = %d;"
        " s.dispatchEvent(new Event('change')); })()"
    )
    browser.js(choose % 1)
    alone, _ = pixels_of(browser, wall)
    assert alone > 500
    browser.js(choose % 2)
    assert pixels_of(browser, wall)[0] > 0.95 * alone
    assert pixels_of(browser, fence)[0] > 0  # visible over the wall, from above


def test_the_wheel_zooms(browser):
    person = colors(PERSON)[0]
    before, _ = pixels_of(browser, person)
    browser.mouse("mouseWheel", *middle(browser), deltaX=0, deltaY=-400)
    browser.wait_for("true")
    assert pixels_of(browser, person)[0] > before


def test_one_finger_rotates_and_two_fingers_zoom(browser):
    person = colors(PERSON)[0]
    browser.call("Emulation.setTouchEmulationEnabled", enabled=True, maxTouchPoints=2)
    x, y = middle(browser)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        fingers = [{"x": px, "y": py, "id": number} for number, (px, py) in enumerate(points)]
        browser.call("Input.dispatchTouchEvent", type=kind, touchPoints=fingers)

    before = pixels_of(browser, person)
    touch("touchStart", (x, y))
    touch("touchMove", (x + 40, y))
    touch("touchMove", (x + 90, y))
    touch("touchEnd")
    turned = pixels_of(browser, person)
    assert turned[1] > before[1] + 10
    touch("touchStart", (x - 40, y), (x + 40, y))
    touch("touchMove", (x - 70, y), (x + 70, y))
    touch("touchMove", (x - 90, y), (x + 90, y))
    touch("touchEnd")
    assert pixels_of(browser, person)[0] > turned[0]


def test_the_buttons_color_by_prediction_truth_and_error(browser):
    person, car, pole = colors(PERSON, CAR, POLE)
    browser.js("document.querySelector('[data-coloring=truth]').click()")
    assert pixels_of(browser, pole)[0] > 100
    assert pixels_of(browser, car)[0] == 0
    browser.js("document.querySelector('[data-coloring=errors]').click()")
    assert pixels_of(browser, person)[0] == 0
    right, wrong = pixels_of(browser, ERROR_COLORS["right"]), pixels_of(browser, ERROR_COLORS["wrong"])
    assert min(right[0], wrong[0]) > 100
    assert right[1] < wrong[1]  # the persons, on the left, are right


def test_the_page_fits_a_phone_and_follows_the_dark_mode_of_the_system(browser):
    browser.resize(390, 800)
    settle(browser)
    assert browser.js("document.documentElement.scrollWidth") <= 390
    paper = "getComputedStyle(document.body).backgroundColor"
    light = browser.js(paper)
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert browser.js(paper) != light
