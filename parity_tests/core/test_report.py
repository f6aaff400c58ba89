"""The report of a run: its curves are there, no peak is lost in drawing, and it is written however a run ends."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from triport.command import main
from triport.core.errors import UserError
from triport.core.record import report
from triport.core.record.chart import Axis, Curve, draw, powers, thinned, ticks
from triport.parity_tests.fixtures.toy import failed, go, whole


def write_metrics(folder, lines):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def step(number, **values):
    usual = {"loss": 1.0, "lr": 0.1, "gradient_norm": 2.0, "first_layer_gradient": 0.5}
    return {"kind": "step", "step": number, "epoch": number / 100, **usual, **values}


def titles(page):
    return re.findall(r"<h2>([^<]+)</h2>", page)


class Tags(HTMLParser):
    """The tags that were opened and not closed, and whatever is loaded from elsewhere."""

    def __init__(self, page):
        super().__init__()
        self.open, self.outside = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.outside += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


# ---------------------------------------------------------------- drawing
@pytest.mark.parametrize("ends", [(0, 1), (0.0, 0.0024), (-3, 7), (62.7, 74.5), (1e6, 3e6)])
def test_ticks_are_few_even_and_inside(ends):
    found = ticks(*ends)
    assert 3 <= len(found) <= 8 and ends[0] - 1e-9 <= found[0] and found[-1] <= ends[1] * (1 + 1e-9)
    assert len({round((b - a) / (ends[1] - ends[0]), 6) for a, b in pairwise(found)}) == 1


def test_powers_of_ten_are_few():
    assert powers(0.01, 100) == pytest.approx([0.01, 0.1, 1, 10, 100])
    assert len(powers(1e-12, 1e12)) <= 7


def test_a_place_on_an_axis():
    assert Axis(0, 10, 100, 200).place(2.5) == 125
    assert Axis(0.01, 100, 200, 0, log=True).place(1) == pytest.approx(100)


def test_thinning_loses_no_peak_no_dip_and_no_gap():
    points: list[tuple[float, float | None]] = [(at / 1000, 1.0 + at % 7 / 100) for at in range(100_000)]
    points[31_234], points[77_001], points[50_000] = (31.234, 99.0), (77.001, -5.0), (50.0, None)
    kept = thinned(points, 100.0)
    assert len(kept) < 1500
    assert {(31.234, 99.0), (77.001, -5.0), (50.0, None)} <= set(kept)
    assert kept == sorted(kept, key=lambda point: point[0])


def test_a_spike_reaches_the_top_of_the_drawing_and_a_gap_breaks_the_line():
    points = [(float(at), 1000.0 if at == 20 else None if at == 30 else 1.0) for at in range(60)]
    drawing = ElementTree.fromstring(draw([Curve("loss", points)], "loss", last=59.0))
    (path,) = drawing.iterfind("g/path")
    heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", path.attrib["d"])]
    assert heights[20] < 30 and min(heights[:20] + heights[21:]) > 200
    assert path.attrib["d"].count("M") == 2


def test_a_logarithmic_axis_leaves_out_what_it_cannot_show():
    drawing = draw([Curve("norm", [(0.0, 0.0), (1.0, 1e-3), (2.0, 10.0), (3.0, -1.0)])], "norm", log=True, last=3.0)
    assert len(ElementTree.fromstring(drawing).findall("g/circle")) == 2
    assert draw([Curve("norm", [(0.0, 0.0)])], "norm", log=True) == ""


@pytest.mark.parametrize("value", [0.0, 5.0, -2.0, 1e-30, 1e30])
@pytest.mark.parametrize("log", [False, True])
def test_a_constant_curve_can_be_drawn(value, log):
    drawing = draw([Curve("constant", [(0.0, value), (1.0, value)])], "constant", log=log)
    assert "nan" not in drawing and "inf" not in drawing


# ---------------------------------------------------------------- pages
@pytest.mark.parametrize("kind", ["moco", "mae", "finetune"])
def test_a_run_leaves_its_curves(kind):
    folder = whole(kind)
    page = (folder / "report.html").read_text()
    shown = titles(page)
    assert shown[:2] == ["loss", "gradient norm"] and "learning rate" in shown
    scored = {"top-1 accuracy"} if kind == "finetune" else {"kNN accuracy", "feature spread", "effective rank"}
    assert scored <= set(shown)
    tags = Tags(page)
    assert tags.open == [] and tags.outside == []
    for drawing in re.findall(r"<svg.*?</svg>", page, re.S):
        ElementTree.fromstring(drawing)
    assert page == report.render(folder)


def test_a_spike_of_the_first_layer_is_told(tmp_path):
    lines = [step(number, first_layer_gradient=40.0 if number == 150 else 0.5) for number in range(1, 201)]
    page = report.render(write_metrics(tmp_path / "run", lines))
    assert "first layer, highest spike: 40 at epoch 1.5 (step 150), 80.0 times the steps before" in page


def test_what_is_not_finite_is_said_and_drawn_around(tmp_path):
    lines = [step(1), step(2, loss=None, gradient_norm=None), step(3)]
    lines.append({"kind": "epoch", "step": 3, "epoch": 1, "knn": 0.5, "effective_rank": None})
    page = report.render(write_metrics(tmp_path / "run", lines))
    assert "50.00 %" in page and "not finite" in page and "effective rank" not in titles(page)


def test_names_are_text_and_not_markup(tmp_path):
    folder = write_metrics(tmp_path / "run", [{"kind": "epoch", "step": 1, "epoch": 1, "<b>x": 1.0}])
    assert "<b>x" not in report.render(folder)


def test_a_run_that_is_being_written_or_was_killed_can_be_drawn(tmp_path, capsys):
    folder = write_metrics(tmp_path / "run", [step(1), step(2)])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "st')
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    assert "step 2, epoch 0.02" in (folder / "report.html").read_text()
    assert not list(folder.glob("*.part"))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_run_that_a_nan_stopped_has_its_curves(tmp_path, capsys):
    assert go("mae", tmp_path / "run", "lr=1e30", "--stop-after-steps", "9") == 2
    assert "the curves are in" in capsys.readouterr().out
    assert "loss" in titles((tmp_path / "run" / "report.html").read_text())


def test_a_folder_without_a_run_is_one_line(tmp_path, capsys):
    assert "holds no run" in failed(capsys, main(["report", str(tmp_path)]))


def test_a_report_that_cannot_be_written_stops_no_run(tmp_path, monkeypatch, capsys):
    def full(folder):
        raise UserError("no room")

    monkeypatch.setattr(report, "write", full)
    assert go("mae", tmp_path / "run", "--stop-after-steps", "1") == 0
    assert "no curves: no room" in capsys.readouterr().out


def test_a_run_without_a_step_says_so(tmp_path):
    page = report.render(write_metrics(tmp_path / "run", []))
    assert "No step and no score" in page
