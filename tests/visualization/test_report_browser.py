"""The report in a real browser: a copy of the page with a script that uses it as a reader would."""

import html
import json
import re
import shutil
import subprocess

import cv2
import numpy as np
import pytest

from instseg.visualization.report import write_report
from tests.visualization.report_document import make_document, make_picture

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH")

WATCH = """<script nonce="test">
const errors = [];
addEventListener("error", (e) => errors.push(e.message));
addEventListener("securitypolicyviolation", (e) => errors.push(`${e.violatedDirective} refused`));
for (const level of ["error", "warn"]) console[level] = (...words) => errors.push(words.join(" "));
</script>"""

USE = """<script nonce="test">
const wait = (time) => new Promise((done) => setTimeout(done, time));
const visible = (selector) =>
  [...document.querySelectorAll(selector)].filter((part) => part.offsetParent !== null);
const column = (n) => visible("#box-table tbody tr").map((row) => row.cells[n].dataset.value);
const press = (key, part) => part.dispatchEvent(new KeyboardEvent("keydown", { key }));
(async () => {
  const result = {};
  const [name, , , ap] = document.querySelectorAll("#box-table thead button");
  ap.click();
  result.ascending = column(3);
  result.ariaSort = visible("#box-table th[aria-sort]").map((heading) => heading.ariaSort);
  ap.click();
  result.descending = column(3);
  result.afterTwo = ap.parentNode.ariaSort;
  name.click();
  result.names = column(0);
  result.sortedByKeyboard = name.tagName === "BUTTON" && name.tabIndex === 0;

  const filter = document.getElementById("box-filter");
  filter.value = "  NUC ";
  filter.dispatchEvent(new Event("input"));
  result.filtered = column(0);
  result.count = filter.parentNode.querySelector("output").value;
  location.hash = "box-category-0";
  await wait(100);
  result.unfiltered = column(0).length;

  result.panels = visible(".panel").map((panel) => panel.dataset.kind);
  document.querySelector("input[value=mask]").click();
  result.switched = visible(".panel").map((panel) => panel.dataset.kind);
  location.hash = "box-error-missed";
  await wait(100);
  result.revealed = visible(".panel").map((panel) => panel.dataset.kind);

  const paper = () => getComputedStyle(document.body).backgroundColor;
  const theme = document.getElementById("theme");
  result.paper = [paper()];
  result.pressed = [theme.ariaPressed];
  for (let i = 0; i < 2; i++) {
    theme.click();
    result.paper.push(paper());
    result.pressed.push(theme.ariaPressed);
  }

  const viewer = document.getElementById("viewer");
  const title = () => document.getElementById("viewer-title").textContent;
  const opener = document.querySelector("#box-pictures button.open");
  opener.click();
  await wait(100);
  result.opened = viewer.open;
  result.larger = viewer.querySelector("img").naturalWidth;
  result.titles = [title()];
  for (const key of ["ArrowRight", "ArrowLeft", "ArrowLeft"]) {
    press(key, viewer);
    result.titles.push(title());
  }
  viewer.querySelector("[value=close]").click();
  result.closed = !viewer.open;
  // A browser sends it with the next frame, of which there is none under a virtual clock.
  viewer.dispatchEvent(new Event("close"));
  result.focus = document.activeElement.dataset.title;

  result.overflow = document.documentElement.scrollWidth - innerWidth;
  result.broken = [...document.images].filter((i) => i.src && i.complete && !i.naturalWidth).length;
  result.errors = errors;
  document.body.dataset.result = JSON.stringify(result);
})();
</script>"""


def launch(page, profile, *options):
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={profile}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_report(make_document(), tmp_path_factory.mktemp("report"), make_picture)


@pytest.fixture(scope="module")
def result(page, tmp_path_factory):
    text = page.read_text(encoding="utf-8")
    for old, new in (
        ("script-src ", "script-src 'nonce-test' "),
        ("<title>", WATCH + "<title>"),
        ("</body>", USE + "</body>"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    copy = page.with_name("used.html")
    copy.write_text(text, encoding="utf-8")
    options = ("--dump-dom", "--virtual-time-budget=5000", "--window-size=500,900")
    dom = launch(copy, tmp_path_factory.mktemp("profile"), *options)
    found = re.search(r'<body[^>]* data-result="([^"]*)"', dom)
    assert found, "the script did not come to its end"
    return json.loads(html.unescape(found[1]))


def test_nothing_goes_wrong(result):
    assert result["errors"] == []
    assert result["broken"] == 0


def test_sorts_by_number_with_missing_values_last(result):
    categories = make_document()["iou_types"]["bbox"]["per_category"].values()
    values = [c["AP"]["value"] for c in categories if c["AP"]["value"] != -1]
    assert len(values) == len(categories) - 1
    assert result["ascending"][-1] == result["descending"][-1] == ""
    assert [float(v) for v in result["ascending"][:-1]] == sorted(values)
    assert [float(v) for v in result["descending"][:-1]] == sorted(values, reverse=True)
    assert result["ariaSort"].count("none") == 12
    assert result["ariaSort"][3] == "ascending"
    assert result["afterTwo"] == "descending"
    assert result["sortedByKeyboard"]


def test_sorts_names_by_alphabet(result):
    names = [name for name in result["names"] if name[0] != "<"]
    assert names == sorted(names)
    assert len(names) == 7


def test_filter_and_the_way_back(result):
    assert result["filtered"] == ["nucleus"]
    assert result["count"] == "1 of 8"
    assert result["unfiltered"] == 8


def test_one_iou_type_at_a_time_and_links_switch(result):
    assert (result["panels"], result["switched"], result["revealed"]) == (
        ["box"],
        ["mask"],
        ["box"],
    )


def test_theme_toggles(result):
    light, dark = "rgb(255, 255, 255)", "rgb(13, 17, 23)"
    assert result["paper"] == [light, dark, light]
    assert result["pressed"] == ["false", "true", "false"]


def test_picture_opens_larger_and_arrows_go_on(result):
    assert result["opened"]
    assert result["closed"]
    assert result["larger"] == 640
    names = [title.split(":")[0] for title in result["titles"]]
    assert names == ["plate_001.png", "plate_002.png", "plate_001.png", "plate_010.png"]
    # Focus goes to the picture that was seen last.
    assert result["focus"].startswith("plate_010.png")


def test_no_sideways_scrolling_on_a_narrow_screen(result):
    assert result["overflow"] <= 0


def test_dark_systems_get_a_dark_page(page, tmp_path):
    shot = tmp_path / "dark.png"
    options = (f"--screenshot={shot}", "--blink-settings=preferredColorScheme=0")
    launch(page, tmp_path / "profile", *options, "--window-size=1000,1400")
    image = cv2.imread(str(shot), cv2.IMREAD_COLOR_RGB)
    assert (image[0, 0] == (13, 17, 23)).all()
    # Text, figures and rules are drawn over it, in light colours.
    drawn = (image != image[0, 0]).any(-1)
    assert 0.02 < drawn.mean() < 0.5
    assert np.percentile(image[drawn].max(-1), 90) > 150
