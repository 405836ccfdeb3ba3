# SPDX-License-Identifier: Apache-2.0
"""The page's sections about trainings and calibrations."""

import json
import re

import pytest

from tests.report.samples import (
    make_bench,
    make_calibration,
    make_checkpoint,
    make_history,
    make_run,
)
from tests.report.test_html import Page
from tvm_dynprune.report import write_report


@pytest.fixture
def report(tmp_path):
    """Write inputs by name, and a page of them; a list is a log's lines."""

    def report(**inputs: dict | list) -> str:
        paths = []
        for name, data in inputs.items():
            if isinstance(data, list):
                path = tmp_path / f"{name}.jsonl"
                path.write_text("\n".join(json.dumps(record) for record in data))
            elif "history" in data:
                path = tmp_path / name
                path.mkdir(exist_ok=True)
                (path / "checkpoint.json").write_text(json.dumps(data))
            else:
                path = tmp_path / f"{name}.json"
                path.write_text(json.dumps(data))
            paths.append(path)
        write_report(paths, tmp_path / "report.html", force=True)
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return report


def everything() -> dict:
    return {
        "dense": make_checkpoint(gate=None),
        "gated": make_checkpoint(),
        "calibration": make_calibration(),
        "run": make_run() | {"network": "compact_vgg_lkam"},
        "bench": make_bench(),
        "old": make_history(old=True),
    }


def test_one_page_shows_everything(report):
    page = Page(report(**everything()))
    for text in (
        "Accuracy against MAC cut",
        "Training: compact_vgg, dense",
        "Training: compact_vgg, lkam in groups of 16 (gated)",
        "Gates over training: compact_vgg, lkam in groups of 16 (gated)",
        "Training: old",
        "Operating points: compact_vgg_lkam",
        "At a glance",
        "Benchmark: vgg16_bn",
        "93.31 % at a MAC cut of 72.0 %",
        "28.0 % to 48.0 % of the dense MACs",
        "features.21",
    ):
        assert text in page.text
    assert "Gates over training: old" not in page.text
    assert "nan" not in page.text.lower()


def test_nothing_is_fetched_and_only_sources_are_linked(report):
    text = report(**everything())
    page = Page(text)
    linked = re.findall(r'<a href="(https://[^"]*)">', text)
    assert set(linked) == {one for one in page.links if not one.startswith(("#", "data:"))}
    assert re.search(r"@import|<script|<link|src=", text) is None
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(page.ids)


def test_published_records_are_drawn_and_listed_with_their_sources(report):
    page = Page(report(gated=make_checkpoint()))
    for label in ("FTWT VGG16-BN, 2022", "ManiDP ResNet-56, 2021", "FBS M-CifarNet, 2019"):
        assert label in page.text
    assert "FBS (by ManiDP)" in page.text
    assert "arXiv 2103.05861" in page.text
    assert "https://arxiv.org/abs/2110.08232" in page.links


def test_records_of_another_data_set_are_not_drawn(report):
    data = make_checkpoint() | {"classes": ["T-shirt/top", "Trouser"]}
    text = Page(report(gated=data)).text
    assert "Accuracy against MAC cut" in text
    assert "ManiDP" not in text


def test_changes_are_counted_from_the_dense_training(report):
    text = report(dense=make_checkpoint(gate=None), gated=make_checkpoint())
    assert "<td>72.0 %</td><td>93.31 %</td><td>−0.81</td>" in text
    assert "94.12 %, compact_vgg, dense" in text


@pytest.mark.parametrize("gate", [None, "lkam"])
def test_a_training_of_one_epoch(report, gate):
    page = Page(report(one=make_checkpoint(gate=gate, epochs=1)))
    assert "1 of 18" in page.text
    assert "nan" not in page.text.lower()


def test_a_calibration_alone_and_of_one_setting(report):
    data = make_calibration()
    data |= {"sweep": data["sweep"][:1], "points": {}}
    page = Page(report(one=data))
    assert "Accuracy against MAC cut" in page.text
    assert "Operating points" not in page.text
    assert "Operating points" in Page(report(two=make_calibration())).text


def test_names_are_text_and_not_markup(report):
    data = make_checkpoint(epochs=2)
    data |= {"network": "<img src=x>", "gate": "$g$"}
    data["training"]["start"] = "<b>"
    data["history"][0]["gates"] = {"layer<1>$^$": 0.5}
    page = Page(report(one=data))
    assert "<img src=x>" in page.text
    assert "layer<1>$^$" in page.text
    assert "x" not in page.links


def test_the_same_inputs_give_the_same_page(report):
    assert report(**everything()) == report(**everything())
