import base64
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from defusedxml import ElementTree

import instseg.visualization.report as report
from instseg.visualization.evaluation_picture import Outcome
from instseg.visualization.report import write_report
from instseg.visualization.report.page import points
from instseg.visualization.report.panel import make_panel
from instseg.visualization.report.pictures import to_data_uri
from instseg.visualization.report.style import DASH
from tests.visualization.report_document import FIGURES, NAMES, make_document, make_picture


class Page(HTMLParser):
    """All tags with their attributes, and the text inside each `tr`."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.rows: list[tuple[str, list[str]]] = []
        self.sort_keys: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = {key: value or "" for key, value in attrs}
        self.tags.append((tag, attributes))
        if tag == "tr":
            self.rows.append((attributes.get("id", ""), []))
        if "data-value" in attributes:
            self.sort_keys.setdefault(self.rows[-1][0], []).append(attributes["data-value"])

    def handle_data(self, data):
        if self.rows and data.strip():
            self.rows[-1][1].append(data.strip())

    def attributes(self, *names):
        return [tag[name] for _, tag in self.tags for name in names if name in tag]


@pytest.fixture(scope="module")
def document():
    return make_document()


@pytest.fixture(scope="module")
def asked():
    return []


@pytest.fixture(scope="module")
def folder(document, asked, tmp_path_factory):
    def picture(iou_type, image_id, box):
        asked.append((iou_type, image_id, box))
        return None if image_id == 10 else make_picture(iou_type, image_id, box)

    folder = tmp_path_factory.mktemp("report") / "new" / "out"
    assert write_report(document, folder, picture) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def text(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_writes_page_numbers_and_figures(document, folder):
    assert json.loads((folder / "report.json").read_text()) == document
    files = {p.name for p in (folder / "figures").iterdir()}
    stems = {f"{kind}_{name}" for kind in ("box", "mask") for name in FIGURES}
    assert files == {f"{stem}.{ending}" for stem in stems for ending in ("png", "svg")}
    for stem in stems:
        assert cv2.imread(str(folder / "figures" / f"{stem}.png")) is not None
        svg = (folder / "figures" / f"{stem}.svg").read_text()
        ElementTree.fromstring(svg, forbid_dtd=False)
        assert "var(--" not in svg
    assert sorted(p.name for p in folder.iterdir()) == ["figures", "report.html", "report.json"]


def test_page_holds_all_it_needs(page, text):
    sources = page.attributes("src", "srcset", "href", "xlink:href", "action", "data")
    assert [s[:40] for s in sources if not s.startswith(("data:", "#"))] == []
    # Style sheets have their own ways to fetch.
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    assert [tag for tag, _ in page.tags if tag in ("link", "iframe", "object", "embed")] == ["link"]


def test_ids_are_unique_and_links_lead_somewhere(page, text):
    ids = page.attributes("id")
    assert [i for i, n in Counter(ids).items() if n > 1] == []
    links = [link[1:] for link in page.attributes("href", "xlink:href") if link.startswith("#")]
    links += re.findall(r"url\(#([^)]*)\)", text)
    assert set(links) - set(ids) == set()
    for name in ("aria-labelledby", "aria-describedby", "aria-controls", "for"):
        assert set(page.attributes(name)) - set(ids) == set()
    # From an error and a category to pictures, and back.
    for link in (
        "box-picture-0",
        "box-picture-6",
        "box-error-missed",
        "mask-suspect-0",
        "mask-category-1",
    ):
        assert link in links


def test_names_are_no_markup(page, text):
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "<script>x" not in text
    assert "&lt;script&gt;x&lt;/script&gt;" in text


def test_only_the_packages_script_may_run(text):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[\w+/=]{44}'$", policy)


def test_every_picture_and_figure_has_words(page):
    images = [tag for name, tag in page.tags if name == "img" and tag.get("src")]
    assert len(images) == 2 * (9 + 6)
    assert all(len(tag["alt"]) > 10 for tag in images)
    svgs = [tag for name, tag in page.tags if name == "svg" and "aria-hidden" not in tag]
    assert len(svgs) == 2 * len(FIGURES)
    assert all(tag["role"] == "img" and len(tag["aria-label"]) > 20 for tag in svgs)


def test_table_of_categories_has_the_numbers(document, page):
    rows = dict(page.rows)
    for kind, section in zip(("box", "mask"), document["iou_types"].values(), strict=True):
        for i, name in enumerate(NAMES):
            category = section["per_category"][name]
            keys = page.sort_keys[f"{kind}-category-{i}"]
            assert keys[:3] == [name, str(category["objects"]), str(category["detections"])]
            ap = category["AP"]["value"]
            assert keys[3] == ("" if ap == -1 else str(ap))
            assert rows[f"{kind}-category-{i}"][3] == (DASH if ap == -1 else f"{100 * ap:.1f}")
            # Pictures with its errors, of which there are 10, each with two of the 8 categories.
            count = sum(name in p["categories"] for p in section["pictures"])
            assert keys[11] == str(count)
            assert count > 1
    # "debris" has no ground truth: neither AP nor a best threshold.
    assert page.sort_keys["box-category-6"][3:11] == [""] * 8
    assert rows["box-category-6"].count(DASH) == 8


def test_summary_shows_all_iou_types_with_intervals(document, page):
    row = next(cells for _, cells in page.rows if cells[0] == "AP50")
    expected = ["AP50", "at IoU 0.50"]
    for section in document["iou_types"].values():
        stat = section["stats"]["AP50"]
        expected += [f"{100 * stat['value']:.1f}"]
        expected += [f"{100 * stat['low']:.1f}{DASH}{100 * stat['high']:.1f}"]
    assert row == expected
    assert next(cells for _, cells in page.rows if cells[0] == "APs")[2:] == [DASH, DASH]


def test_a_type_of_figures_alone_is_in_the_summary(document, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_write_figures", lambda *_: dict.fromkeys(FIGURES, ""))
    stats = {"AP": {"value": 0.123, "low": 0.1, "high": 0.2}}
    sections = {"bbox": document["iou_types"]["bbox"]}
    sections["boundary"] = {"stats": stats, "per_category": {}}
    path = write_report(document | {"iou_types": sections}, tmp_path, make_picture)
    page = Page(path.read_text(encoding="utf-8"))
    rows = {cells[0]: cells for _, cells in page.rows}
    assert rows["Metric"] == ["Metric", "Box", "Boundary"]
    assert rows["AP"][-2:] == ["12.3", f"10.0{DASH}20.0"]
    assert rows["AP50"][-1] == DASH
    assert not any(i.startswith("boundary") for i in page.attributes("id"))


def test_without_replicates_no_interval_is_promised(document, text, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_write_figures", lambda *_: dict.fromkeys(FIGURES, ""))
    page = write_report(document | {"replicates": 0}, tmp_path, make_picture)
    assert "95 % bootstrap intervals" in text
    assert "bootstrap" not in page.read_text(encoding="utf-8")


def test_the_legend_is_of_the_lines_that_are_drawn(page, text):
    strokes = [tag for name, tag in page.tags if name == "path" and "rgb" in tag.get("stroke", "")]
    legends = len(strokes) // len(Outcome)
    assert legends == 3  # below each heading of the two galleries, and beside the larger picture
    for tag, outcome in zip(
        strokes,
        (Outcome.FOUND, Outcome.FALSE, Outcome.MISSED, Outcome.TRUTH) * legends,
        strict=True,
    ):
        assert tag["stroke"] == f"rgb{outcome.colour}"
        dash = tag.get("stroke-dasharray", "").split()
        assert [int(length) for length in dash] == list(outcome.dash or ())
    assert text.count("missed object</li>") == legends


def test_each_picture_and_each_suspect_box_is_asked_for_once(document, asked, folder):
    boxes = [s["box"] for s in document["iou_types"]["bbox"]["label_errors"]]
    expected = [(i, None) for i in range(1, 11)] + list(enumerate(boxes, 1))
    # All of an image in a row, so that it need not be read twice.
    expected.sort(key=lambda item: item[0])
    assert asked == [(iou_type, *item) for iou_type in ("bbox", "segm") for item in expected]


def test_an_image_without_picture_says_so(text):
    assert text.count("No picture") == 2


def test_an_image_without_file_name_is_called_by_its_id(text):
    assert text.count("<h4>image 9</h4>") == 2


def test_a_missing_annotation_has_no_category(document, page):
    rows = dict(page.rows)
    first, second = document["iou_types"]["bbox"]["label_errors"][:2]
    assert rows["box-suspect-0"][:4] == ["1", "missing", DASH, first["suggests"]]
    assert rows["box-suspect-1"][:4] == ["2", "wrong label", second["category"], second["suggests"]]


@pytest.mark.parametrize("value", [None, -1, -1.0, float("nan")])
def test_a_missing_value_is_a_dash(value):
    assert points(value) == DASH


def test_points_are_percent():
    assert (points(0.3785), points(0), points(1.0), points(-0.012)) == (
        *("37.9", "0.0", "100.0"),
        "-1.2",
    )


def decode(uri):
    head, _, data = uri.partition(",")
    assert head == "data:image/webp;base64"
    return cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR_RGB)


def test_large_pictures_shrink_and_keep_their_colours():
    image = np.zeros((1000, 2000, 3), np.uint8)
    image[:, :1000, 0] = image[:, 1000:, 2] = 255
    small = decode(to_data_uri(image))
    assert small.shape == (400, 800, 3)
    assert np.abs(small[200, 100].astype(int) - (255, 0, 0)).max() < 12
    assert np.abs(small[200, 700].astype(int) - (0, 0, 255)).max() < 12
    assert decode(to_data_uri(image[:3, :5])).shape == (3, 5, 3)
    assert decode(to_data_uri(np.zeros((1, 5000, 3), np.uint8))).shape == (1, 800, 3)


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)],
)
def test_what_is_no_picture_is_refused(document, image):
    with pytest.raises(
        ValueError, match=r"picture of image 1 \(bbox\): expected uint8 \[H, W, 3\]"
    ):
        make_panel("bbox", "box", document, {}, lambda *_: image)


def test_a_document_with_holes_is_refused(tmp_path):
    document = make_document(iou_types=("bbox",))
    del document["iou_types"]["bbox"]["curves"], document["title"]
    with pytest.raises(ValueError, match="document: lacks 'title'"):
        write_report(document, tmp_path, make_picture)
    document["title"] = "a"
    with pytest.raises(ValueError, match="IoU type 'bbox': lacks 'curves'"):
        write_report(document, tmp_path, make_picture)
    with pytest.raises(ValueError, match=r"one of .*'segm'.*, got '\.\./keypoints'"):
        write_report(document | {"iou_types": {"../keypoints": {}}}, tmp_path, make_picture)
    for sections in ({}, {"boundary": {"stats": {}, "per_category": {}}}):
        with pytest.raises(ValueError, match="no IoU type has more than figures"):
            write_report(document | {"iou_types": sections}, tmp_path, make_picture)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), np.float32(1)])
def test_what_json_cannot_hold_is_refused(document, tmp_path, value):
    with pytest.raises(ValueError, match="JSON cannot hold it"):
        write_report(document | {"images": value}, tmp_path, make_picture)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_earlier_page(document, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_write_figures", lambda *_: dict.fromkeys(FIGURES, ""))
    page = write_report(document, tmp_path, make_picture)
    before = page.read_bytes()

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(document | {"title": "second"}, tmp_path, make_picture)
    assert page.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_half_a_surrogate_pair_does_not_stop_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_write_figures", lambda *_: dict.fromkeys(FIGURES, ""))
    document = make_document(("\ud83d", "b"), ("segm",))
    page = write_report(document, tmp_path, make_picture)
    assert '<th scope="row" data-value="?">?</th>' in page.read_text(encoding="utf-8")
