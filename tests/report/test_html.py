# SPDX-License-Identifier: Apache-2.0
"""The page: complete, self-contained, safe against names in it, and never half-written."""

import json
import re
from html.parser import HTMLParser

import pytest

from tests.report.samples import make_bench, make_run
from tvm_dynprune.errors import DataError, OutputExistsError
from tvm_dynprune.report import write_report

VOID = {"meta", "br"}


class Page(HTMLParser):
    """Checks that elements are closed in order and gathers ids, references and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href"):
                self.links.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def report(tmp_path):
    def report(*measurements: dict) -> str:
        paths = [tmp_path / f"{index}.json" for index in range(len(measurements))]
        for path, data in zip(paths, measurements, strict=True):
            path.write_text(json.dumps(data))
        write_report(paths, tmp_path / "report.html", force=True)
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return report


def test_one_page_shows_everything(report):
    page = Page(report(make_run(), make_bench()))
    for heading in (
        "At a glance",
        "Accuracy against cost",
        "Latency of each input",
        "Where gates open",
        "Easiest and hardest classes",
        "Which images use how much",
        "Benchmark: vgg16_bn on host, 1 thread",
        "Where the numbers come from",
    ):
        assert heading in page.text
    assert "71.0 %" in page.text
    assert "0.93" in page.text
    assert "200 of 200 (masked PyTorch)" in page.text
    assert "features.2.conv  (8 groups of 8)" in page.text
    assert "4.71×" in page.text
    assert "tvm-dynprune bench vgg16_bn --mac-cut 0.7" in page.text


def test_nothing_is_fetched_from_elsewhere(report):
    text = report(make_run(), make_run(soc="pi"), make_bench())
    page = Page(text)
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(page.ids)
    assert re.search(r"https?:|@import|<script|<link", text) is None


def test_plots_take_the_page_colour(report):
    text = report(make_run())
    assert "#0a0b0c" not in text
    assert "currentColor" in text


def test_devices_stand_side_by_side(report):
    text = report(make_run(), make_run(soc="raspberry-pi-5"))
    assert "<th>fashion_cnn<br>host</th><th>fashion_cnn<br>raspberry-pi-5</th>" in text
    assert "Latency of each input: fashion_cnn on raspberry-pi-5 (indexed)" in text


def test_the_same_files_give_the_same_page(report):
    assert report(make_run(), make_bench()) == report(make_run(), make_bench())


def test_a_run_with_nothing_optional_and_no_gates(report):
    data = make_run(images=1)
    data["gates"] = []
    for name in ("labels", "accuracy", "latency_dense_ms", "realised_fraction", "agreement"):
        data[name] = None
    data["points"] = []
    text = Page(report(data)).text
    assert "By predicted class" in text
    assert "Accuracy against cost" not in text
    assert "Where gates open" not in text
    assert "Which images use how much" not in text
    assert "nan" not in text.lower()


def test_runs_alone_show_no_published_records(report):
    text = report(make_run(), make_bench())
    assert "Accuracy against MAC cut" not in text
    assert "ManiDP" not in text


def test_images_at_both_ends_are_listed(report):
    data = make_run(images=4, classes=["cat", "dog"])
    data |= {"macs": [4e6, 1e6, 19e6, 8e6], "labels": [0, 0, 1, 1], "predictions": [0, 0, 0, 1]}
    text = report(data)
    cheapest = "<th>cheapest</th><td>1</td><td>cat</td><td>cat</td><td>5.0 %</td>"
    assert cheapest in text
    assert "<td>2</td><td>dog</td><td><b>cat</b></td><td>95.0 %</td>" in text


def test_runs_at_different_points_have_different_names(report):
    text = report(make_run() | {"point": "accurate"}, make_run() | {"point": "fast"})
    assert "<th>fashion_cnn<br>host<br>accurate</th>" in text
    assert "Latency of each input: fashion_cnn on host (indexed), fast" in text


def test_many_images_become_a_picture_inside_the_page(report):
    text = report(make_run(images=3000))
    assert "data:image/png;base64," in text
    assert len(text) < 2_000_000


def test_names_are_text_and_not_markup(report):
    data = make_run(classes=["<script>a</script>", "$x_1$", "a & b"])
    data |= {"network": "<img src=x>", "soc": 'a"b'}
    data["gates"][0]["name"] = "layer<1>$^$"
    page = Page(report(data))
    assert "<script>a</script>" in page.text
    assert "$x_1$" in page.text
    assert "<img src=x>" in page.text
    assert "x" not in page.links


def test_an_existing_report_is_kept(tmp_path):
    source, out = tmp_path / "m.json", tmp_path / "report.html"
    source.write_text(json.dumps(make_bench()))
    out.write_text("mine")
    with pytest.raises(OutputExistsError, match="--force"):
        write_report([source], out)
    assert out.read_text() == "mine"


def test_a_wrong_file_leaves_no_report_and_the_old_one_whole(tmp_path):
    good, bad, out = (tmp_path / name for name in ("good.json", "bad.json", "report.html"))
    good.write_text(json.dumps(make_bench()))
    bad.write_text("{}")
    out.write_text("mine")
    with pytest.raises(DataError, match=r"bad\.json"):
        write_report([good, bad], out, force=True)
    assert out.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bad.json",
        "good.json",
        "report.html",
    ]


def test_no_file_at_all_is_an_error(tmp_path):
    with pytest.raises(DataError, match="nothing to report"):
        write_report([], tmp_path / "report.html")
