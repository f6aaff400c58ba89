"""Charts: no peak is lost, gaps stay gaps, axes fit, and what is drawn stands in a page's colours."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from triport.core.record.chart import COLOURS, Curve, Dot, cloud, draw, strip, thinned


def curves_of(drawing):
    """The points of each curve: (x, y, whether the line begins there)."""
    paths = re.findall(r'<path d="([^"]*)" style="fill: none; (?:stroke-[^"]*)?stroke: var\(--c\d\)', drawing)
    return [
        [(float(x), float(y), word == "M") for word, x, y in re.findall(r"([ML]) ([\d.-]+) ([\d.-]+)", path)]
        for path in paths
    ]


def test_thinning_loses_no_peak_no_dip_and_no_gap():
    points: list[tuple[float, float | None]] = [(at / 1000, 1.0 + at % 7 / 100) for at in range(100_000)]
    points[31_234], points[77_001], points[50_000] = (31.234, 99.0), (77.001, -5.0), (50.0, None)
    saved = thinned(points, 100.0)
    assert len(saved) < 1500
    assert {(31.234, 99.0), (77.001, -5.0), (50.0, None)} <= set(saved)
    assert saved == sorted(saved, key=lambda point: point[0])


def test_thinning_keeps_the_smallest_and_the_largest_of_each_column():
    points = [(at / 100, math.sin(at * at)) for at in range(10_000)]
    saved = thinned(points, 100.0, columns=50)
    for column in range(50):
        inside = [y for x, y in points if int(x / 2) == column]
        own = [y for x, y in saved if int(x / 2) == column and y is not None]
        assert sorted(own) == [min(inside), max(inside)]
    assert thinned([(float(at), None) for at in range(5000)], 5000.0, columns=10) == [
        (500.0 * at, None) for at in range(10)
    ]


def test_a_spike_reaches_the_top_of_the_drawing_and_a_gap_breaks_the_line():
    points = [(float(at), 1000.0 if at == 20 else None if at == 30 else 1.0) for at in range(60)]
    (curve,) = curves_of(draw([Curve("loss", points)], "loss", last=59.0))
    heights = [y for _, y, _ in curve]
    assert heights[20] < 30 and min(heights[:20] + heights[21:]) > 200
    assert sum(begins for *_, begins in curve) == 2


def test_a_logarithmic_axis_leaves_out_what_it_cannot_show():
    points = [(0.0, 0.0), (1.0, 1e-3), (2.0, 10.0), (3.0, -1.0)]
    drawing = draw([Curve("norm", points)], "norm", log=True, last=3.0)
    assert len(curves_of(drawing)[0]) == 2 and drawing.count("<title>norm, epoch") == 2
    assert draw([Curve("norm", [(0.0, 0.0)])], "norm", log=True) == ""
    assert draw([Curve("norm", [(0.0, None), (1.0, math.nan)])], "norm") == ""


def test_larger_is_higher_and_ten_times_as_large_is_one_step():
    drawing = draw([Curve("a", [(0, 1e-7), (1, 1e-5), (2, 1e-6)])], "x < y", log=True, allowed=[(0, 1e-5), (2, 1e-5)])
    heights = [y for _, y, _ in curves_of(drawing)[0]]
    assert heights[0] - heights[2] == pytest.approx(heights[2] - heights[1], abs=0.01) and heights[1] < heights[2]
    assert "x &lt; y" in drawing and ">1e-7<" in drawing and ">1e-5<" in drawing


@pytest.mark.parametrize("value", [0.0, 5.0, -2.0, 1e-300, 1e-30, 1e30, 1e300])
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.filterwarnings("error")
def test_a_constant_curve_can_be_drawn(value, log):
    drawing = draw([Curve("constant", [(0.0, value), (1.0, value)])], "constant", log=log)
    assert "nan" not in drawing and "inf" not in drawing
    assert bool(drawing) == (value > 0 or not log)


def test_a_drawing_is_whole_xml_in_the_colours_of_the_page_with_names_of_its_own():
    made = [draw([Curve("<a>", [(0.0, 1.0)], "torch")], title, y_label="loss") for title in ("a", "b")]
    roots = [ElementTree.fromstring(drawing) for drawing in made]
    names = [{node.get("id") for node in root.iter() if node.get("id")} for root in roots]
    assert names[0] and not names[0] & names[1]
    for drawing in made:
        assert "var(--torch)" in drawing and not any(colour in drawing for colour in COLOURS.values())
        assert "#000000" not in drawing and "#ffffff" not in drawing and "&lt;a&gt;, epoch 0: 1" in drawing
    assert made[0] == draw([Curve("<a>", [(0.0, 1.0)], "torch")], "a", y_label="loss")


def test_a_strip_orders_dots_and_bounds_them():
    dots = [Dot("torch", "equal", 0.0), Dot("paddle", "edge", 1.0), Dot("oneflow", "broken", math.inf, "torch")]
    places = re.findall(r'x="([\d.]+)"[^>]*><title>(\w+)<', strip(dots, "forward", 300))
    at = {name: float(x) for x, name in places}
    edge = (300 * 5.3) / 6.6
    assert 0 < at["equal"] < at["edge"] < at["broken"] < 300 and at["edge"] == pytest.approx(edge, abs=0.01)


def test_a_cloud_has_a_colour_for_each_group():
    drawing, curves = cloud({f"class {n}": [(n, n), (n, 0)] for n in range(3)}, "features")
    assert [curve.colour for curve in curves] == ["c0", "c1", "c2"]
    assert all(f"var(--{curve.colour})" in drawing for curve in curves)
