"""The page of `nda trace` in a browser: mouse, keyboard, touch, phone, dark, and no word to the
network."""

import json
import shutil

import pytest
from made_up_trace import made_up
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait
from test_page import NASTY

from nda.report.page import page

DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    DRIVER is None, reason="the page needs a browser: apt-get install chromium-driver"
)
LONG = ["d" * 255, "ä" * 127, "صورة" * 40, "📷" * 60, "a b " * 60, "<script>alert(1)</script>"]


@pytest.fixture(scope="module")
def browser():
    """Chromium with its network off, which writes down what it would ask for."""
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def show(browser, tmp_path):
    """A function that opens the page of a report; afterwards nothing was logged or asked for."""

    def opened(report, *, width=1300, dark=False):
        file = tmp_path / "index.html"
        file.write_text(page(report), encoding="utf-8")
        offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        browser.execute_cdp_cmd("Network.enable", {})
        browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        colours = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [colours, still]})
        browser.get(file.as_uri())
        return browser

    yield opened
    assert not browser.get_log("browser")
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in sent if e["method"].endswith("WillBeSent")]
    assert asked and all(url.startswith(("file://", "data:")) for url in asked), asked


def one(driver, selector):
    return driver.find_element(By.CSS_SELECTOR, selector)


def texts(driver, selector):
    return [found.text for found in driver.find_elements(By.CSS_SELECTOR, selector)]


def press(driver, *keys):
    for key in keys:
        driver.switch_to.active_element.send_keys(key)


def at(driver, row, col, size=8):
    """Where a pixel of the suspect is, from the middle of the plate."""
    plate = one(driver, "#suspect-plate")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", plate)
    side = plate.size["width"] / size
    return plate, int((col + 0.5 - size / 2) * side), int((row + 0.5 - size / 2) * side)


def veil(driver, plate):
    """How opaque the veil is at every pixel of a plate, from 0 to 1."""
    script = """
    const canvas = document.querySelector(arguments[0] + " canvas");
    const copy = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    copy.drawImage(canvas, 0, 0);
    const all = copy.getImageData(0, 0, canvas.width, canvas.height).data;
    return Array.from(all).filter((_, i) => i % 4 === 3).map((a) => a / 255);"""
    return driver.execute_script(script, plate)


def test_pixel_that_is_clicked_shows_its_sources_and_stays(show):
    driver = show(made_up())
    for col, source in ((1, "source_0.png"), (6, "source_1.png")):
        ActionChains(driver).move_to_element_with_offset(*at(driver, 2, col)).perform()
        assert one(driver, "#here .name").text == source
        assert one(driver, "#source-name").text == source
        assert f"Row 3, column {col + 1}. Entropy 0.61 nats" in one(driver, "#reading").text
    assert texts(driver, "#here button b") == ["80 %", "15 %", "5 %"]
    outline = one(driver, "#source-plate svg .over")
    assert [outline.get_attribute(n) for n in ("x", "y", "width")] == ["5", "1", "3"]

    ActionChains(driver).move_to_element_with_offset(*at(driver, 2, 1)).click().perform()
    ActionChains(driver).move_to_element_with_offset(*at(driver, 5, 6)).perform()
    assert (
        one(driver, "#here .name").text == "source_0.png" and one(driver, "#pin").text == "Pinned"
    )
    one(driver, "#pin").click()
    ActionChains(driver).move_to_element_with_offset(*at(driver, 5, 6)).perform()
    assert one(driver, "#here .name").text == "source_1.png"


def test_pixel_that_is_tapped_shows_its_sources(show):
    driver = show(made_up(), width=360)
    plate, across, down = at(driver, 2, 6)
    finger = ActionBuilder(driver, mouse=PointerInput("touch", "finger"))
    finger.pointer_action.move_to(plate, across, down).pointer_down().pointer_up()
    finger.perform()
    assert one(driver, "#here .name").text == "source_1.png"
    assert one(driver, "#reading").text.startswith("Row 3, column 7.")


def test_source_that_is_clicked_lights_its_pixels_up(show):
    driver = show(made_up())
    assert max(veil(driver, "#suspect-plate")) == 0
    one(driver, "#rows tr").click()
    assert texts(driver, "#source-what") == ["Chosen source"]
    left = [i % 8 < 4 for i in range(64)]
    # In the suspect its own pixels; in the source the patches around them, one pixel wider.
    for plate, clear in (
        ("#suspect-plate", left),
        ("#source-plate", [i % 8 < 5 for i in range(64)]),
    ):
        assert [alpha < 0.3 for alpha in veil(driver, plate)] == clear
    assert one(driver, "#rows button").get_attribute("aria-pressed") == "true"
    assert one(driver, "#here button").get_attribute("aria-pressed") == "true"
    one(driver, "#leave").click()
    assert max(veil(driver, "#suspect-plate")) == 0 and not texts(driver, "#rows .chosen")
    one(driver, "#here button").click()  # the same from beside the suspect
    assert [alpha < 0.3 for alpha in veil(driver, "#suspect-plate")] == left


def test_views_show_sources_in_colours_and_entropy(show):
    driver = show(made_up())
    one(driver, "[value=sources]").click()
    assert texts(driver, "#legend .name") == [f"source_{i}.png" for i in range(4)]
    assert min(veil(driver, "#suspect-plate")) == pytest.approx(0.6, abs=0.01)
    one(driver, "#number").send_keys(Keys.HOME)
    assert texts(driver, "#legend .name") == ["source_0.png"]
    assert texts(driver, "#here .name") and len(texts(driver, "#here li")) == 2
    assert "other images" in one(driver, "#here .rest").text
    one(driver, "[value=entropy]").click()
    assert "0.61 nats" in one(driver, "#legend").text and min(veil(driver, "#suspect-plate")) > 0.8


def test_slider_of_the_noise_level(show):
    driver = show(made_up())
    assert one(driver, "#noise-said").text == "timestep 20 of 1000"
    first = one(driver, "#here .name").text
    one(driver, "#noise").send_keys(Keys.ARROW_RIGHT)
    assert one(driver, "#noise-said").text == "timestep 100 of 1000"
    assert one(driver, "#noise").get_attribute("aria-valuetext") == "timestep 100 of 1000"
    assert (first, one(driver, "#here .name").text) == ("source_0.png", "source_2.png")


def test_table_sorts(show):
    driver = show(made_up(sources=12))
    head = {button.text: button for button in driver.find_elements(By.CSS_SELECTOR, "th button")}
    sorts = lambda name: head[name].find_element(By.XPATH, "..").get_attribute("aria-sort")  # noqa: E731
    names = texts(driver, "#rows button")
    assert names == [f"source_{i}.png" for i in range(10)] and sorts("Share") == "descending"
    head["Share"].click()
    assert texts(driver, "#rows button")[0] == "source_11.png" and sorts("Share") == "ascending"
    head["File"].click()
    assert texts(driver, "#rows button")[:3] == ["source_0.png", "source_1.png", "source_10.png"]
    assert sorts("File") == "ascending" and sorts("Share") == "none"
    head["p"].click()
    assert texts(driver, "#rows td:nth-child(5)")[:3] == ["0.01", "0.02", "0.03"]
    one(driver, "#more").click()
    assert texts(driver, "#rows button") == ["source_10.png", "source_11.png"]
    assert one(driver, "#range").text == "11 to 12 of 12" and not one(driver, "#more").is_enabled()


def test_keyboard_alone(show):
    driver = show(made_up())
    driver.switch_to.active_element.send_keys(Keys.TAB)  # the link to the settings
    press(driver, Keys.TAB)
    plate = driver.switch_to.active_element
    assert plate.get_attribute("id") == "suspect-plate" and plate.aria_role == "application"
    assert plate.value_of_css_property("outline-style") == "solid"
    press(driver, Keys.HOME, *[Keys.ARROW_UP] * 9)
    assert one(driver, "#reading").text.startswith("Row 1, column 1.")
    press(driver, *[Keys.ARROW_RIGHT] * 6, Keys.ARROW_DOWN)
    assert one(driver, "#reading").text.startswith("Row 2, column 7.")
    assert one(driver, "#here .name").text == "source_1.png"
    press(driver, Keys.ENTER)
    said = "Row 2, column 7: source_1.png 80 %, entropy 0.61 nats, pinned"
    WebDriverWait(driver, 20).until(lambda d: one(d, "#status").text == said)
    press(driver, Keys.SPACE)
    assert one(driver, "#pin").get_attribute("aria-pressed") == "false"

    press(driver, Keys.TAB, Keys.TAB)  # over the pin to the first source
    press(driver, Keys.ENTER)
    focused = driver.switch_to.active_element  # drawn anew, and still the same
    assert focused.get_attribute("aria-pressed") == "true" and "source_1" in focused.text
    assert one(driver, "#source-what").text == "Chosen source"
    driver.execute_script("arguments[0].focus()", plate)
    press(driver, Keys.ESCAPE)
    assert one(driver, "#source-what").text == "Heaviest source here"
    order = []
    while "score" not in order and len(order) < 20:
        press(driver, Keys.TAB)
        focused = driver.switch_to.active_element
        order.append(focused.get_attribute("id") or focused.get_attribute("data-key"))
    assert order[0] == "pin" and order[-5:] == ["rank", "name", "share", "p", "score"]
    assert [name for name in order if name in ("noise", "number")] == ["noise", "number"]


def test_several_suspects_are_tabs(show):
    driver = show(made_up(suspects=3))
    tabs = driver.find_elements(By.CSS_SELECTOR, "[role=tab]")
    tabs[0].send_keys(Keys.ARROW_LEFT)
    assert driver.switch_to.active_element == tabs[2]
    assert [tab.get_attribute("aria-selected") for tab in tabs] == ["false", "false", "true"]
    assert one(driver, "#suspect-name").text == "suspect_2.png"
    assert [v.is_displayed() for v in driver.find_elements(By.CSS_SELECTOR, ".verdict")] == [
        False,
        False,
        True,
    ]
    tabs[1].click()
    assert one(driver, "#suspect-name").text == "suspect_1.png"
    assert one(driver, "main").get_attribute("aria-labelledby") == "tab-1"


def test_names_are_shown_and_not_run(show):
    driver = show(made_up(names=NASTY, sources=10, suspects=len(NASTY)))
    shown = driver.execute_script(
        "return [...document.querySelectorAll('[role=tab] .name')].map((e) => e.textContent)"
    )
    assert sorted(map(len, shown)) == sorted(map(len, NASTY))
    assert not [c for name in shown for c in name if ord(c) < 32]
    driver.execute_script("document.querySelector('#rows tr').click()")
    assert driver.execute_script("return document.scripts.length") == 2


@pytest.mark.parametrize("width", [360, 700, 1300])
def test_page_never_scrolls_sideways(show, width):
    driver = show(made_up(names=LONG, suspects=6, sources=12), width=width)
    one(driver, "[value=sources]").click()
    for tab in driver.find_elements(By.CSS_SELECTOR, "[role=tab]"):
        driver.execute_script("arguments[0].click()", tab)
        driver.execute_script("document.querySelector('#rows tr').click()")
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width


CONTRAST = """
const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
const light = (text) => rgb(text).slice(0, 3).map((v) => v / 255)
  .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const ground = (e) => {
  for (; e; e = e.parentElement) {
    const parts = rgb(getComputedStyle(e).backgroundColor);
    if (parts.length < 4 || parts[3] > 0) return getComputedStyle(e).backgroundColor;
  }
};
const found = [];
for (const e of document.body.querySelectorAll("*")) {
  const words = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  if (!words || e.matches("script, :disabled") || !e.getClientRects().length) continue;
  const style = getComputedStyle(e);
  const pair = [e.tagName === "text" ? style.fill : style.color, ground(e)].map(light);
  const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
  found.push([ratio, e.tagName + " " + e.textContent.trim().slice(0, 40)]);
}
return found;
"""


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_readable(show, dark):
    driver = show(made_up(suspects=2, sources=12), dark=dark)
    driver.execute_script("document.querySelector('#rows tr').click()")
    found = driver.execute_script(CONTRAST)
    assert len(found) > 80
    ground = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(23, 22, 20)") == dark
    assert not [one for one in found if one[0] < 4.5]


def test_pictures_have_alternatives_and_controls_have_names(show):
    driver = show(made_up(suspects=2))
    script = "return [...document.images].filter((i) => !i.hasAttribute('alt')).length"
    assert driver.execute_script(script) == 0
    assert "suspect_0.png" in one(driver, "#suspect-plate img").get_attribute("alt")
    assert "source_0.png" in one(driver, "#source-plate img").get_attribute("alt")
    assert "99 held-out images" in one(driver, "#null").get_attribute("aria-label")
    for control in driver.find_elements(By.CSS_SELECTOR, "button, input, [role=application]"):
        name = control.accessible_name or not control.is_displayed()
        assert name, control.get_attribute("outerHTML")


def test_thousand_sources_are_as_many_nodes_as_twenty(show):
    counts = []
    for sources in (20, 1000):
        driver = show(made_up(sources=sources))
        one(driver, "[value=sources]").click()
        one(driver, "#number").send_keys(Keys.END)
        one(driver, "#more").click()
        assert one(driver, "#range").text == f"11 to 20 of {sources}"
        script = "return [document.images.length, document.all.length]"
        counts.append(driver.execute_script(script))
    assert counts[0] == counts[1] and counts[1][0] <= 16 and counts[1][1] <= 600


def test_suspect_without_sources(show):
    driver = show(made_up(kind="none"))
    assert texts(driver, "#rows td") == ["No image explains any pixel."]
    assert one(driver, "#number-said").text == "0 of 0" and not one(driver, "#pager").is_displayed()
    assert one(driver, "#here .name").is_displayed()
    one(driver, "#here button").click()
    assert "Not among the sources" in one(driver, "#source-said").text


def test_map_of_an_even_patch_has_a_row_and_a_column_less(show):
    report = made_up()
    for one_map in report["suspects"][0]["maps"]:
        for name in ("image", "mass", "row", "col", "mirrored", "entropy"):
            few = len(one_map[name]) // 64
            kept = [i for i in range(64) if i // 8 < 7 and i % 8 < 7]
            one_map[name] = [one_map[name][i * few + k] for i in kept for k in range(few)]
        one_map |= {"rows": 7, "cols": 7, "patch": 4}
    driver = show(report)
    one(driver, "#suspect-plate").send_keys(Keys.END, *[Keys.ARROW_DOWN] * 9)
    assert one(driver, "#reading").text.startswith("Row 8, column 8.")
    assert one(driver, "#here .name").text == "source_1.png"
