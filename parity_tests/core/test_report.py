"""The report of a run: its curves are there, no peak is lost in drawing, and it is written however a run ends."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from triport.command import main
from triport.core.errors import UserError
from triport.core.record import health, recorded, report
from triport.core.spec import recipe as recipes
from triport.parity_tests.fixtures.toy import failed, go


def write_metrics(folder, lines):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def step(number, **values):
    usual = {"loss": 1.0, "lr": 0.1, "gradient_norm": 2.0, "first_layer_gradient": 0.5}
    return {"kind": "step", "step": number, "epoch": number / 100, **usual, **values}


def titles(page):
    return re.findall(r"<h3>([^<]+)</h3>", page)


class Tags(HTMLParser):
    """The tags that were opened and not closed, and whatever is loaded from elsewhere."""

    def __init__(self, page):
        super().__init__()
        self.open, self.outside = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.outside += [
            value for name, value in attrs if name in ("src", "href") and not value.startswith(("data:", "#"))
        ]
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


# ---------------------------------------------------------------- health
def epoch(number, **scores):
    return {"kind": "epoch", "step": 100 * number, "epoch": number, **scores}


def health_of(tmp_path, lines, recipe="tiny/moco_vit_tiny"):
    folder = write_metrics(tmp_path / "run", lines)
    (folder / "recipe.toml").write_text(recipes.to_toml(recipes.load(recipe, ["epochs=2", "warmup=1"])))
    run = recorded.read(folder)
    return health.verdict(run), health.warnings(run)


def test_the_verdict_compares_with_the_untrained_network(tmp_path):
    scores = [epoch(0, knn=0.4), epoch(1, knn=0.6), epoch(2, knn=0.7)]
    (kind, text), warnings = health_of(tmp_path, [step(1), *scores, step(200)])
    assert kind == "good" and warnings == []
    assert text == "It learned: kNN accuracy 70.0 % after 2 epochs, +30.0 points on the untrained network's 40.0 %."


def test_a_run_that_goes_on_or_learned_nothing_does_not_pass(tmp_path):
    kind, text = health_of(tmp_path, [step(1), epoch(0, knn=0.4), epoch(1, knn=0.6)])[0]
    assert kind == "note" and "after 1 of 2 epochs" in text
    kind, text = health_of(tmp_path / "worse", [epoch(0, knn=0.4), epoch(2, knn=0.39)])[0]
    assert kind == "bad" and "has not learned" in text and "-1.0 points" in text


def test_without_scores_the_loss_is_what_there_is(tmp_path):
    lines = [step(n, loss=4.0 - n / 100) for n in range(1, 201)]
    assert "The loss fell from 3.945 to 2.045" in health_of(tmp_path, lines)[0][1]
    (kind, text), _ = health_of(tmp_path / "flat", [step(n, loss=2.0 + n / 100) for n in range(1, 201)])
    assert kind == "bad" and "did not fall" in text


def test_baselines_stand_beside_the_score(tmp_path):
    folder = write_metrics(tmp_path / "run", [epoch(0, knn=0.4), epoch(1, knn=0.6)])
    (folder / "baselines.json").write_text('{"raw pixels": 0.81, "chance": 0.1}')
    assert report.render(folder).count("raw pixels 81.0 %, chance 10.0 %") == 2  # verdict and key number


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        ([step(n, first_layer_gradient=40.0 if n == 150 else 0.5) for n in range(1, 201)], "Spike: .* 80 times"),
        ([step(1), step(2, loss=None)], "Not finite: the loss of 1 recorded step "),
        ([epoch(0, spread=0.8), epoch(1, spread=0.01)], "Collapse: .* from 0.8 to 0.01"),
        ([epoch(0, knn=0.4), epoch(1, knn=0.7), epoch(2, knn=0.5)], "Fallen: kNN accuracy was 70.0 % and is 50.0 %"),
        ([step(n, images_per_second=2560.0, data_seconds=0.06) for n in range(1, 9)], "Slow loader: 60 % of the time"),
    ],
)
def test_each_warning_has_its_sentence(tmp_path, lines, word):
    found = health_of(tmp_path, lines)[1]
    assert len(found) == 1 and re.match(word, found[0]), found


def test_the_highest_spike_is_found_as_by_hand():
    values = np.random.default_rng(0).lognormal(size=400)
    lines = [step(at, x=value) for at, value in enumerate(values)]
    ratios = [values[at] / np.median(values[max(0, at - 50) : at]) for at in range(25, 400)]
    ratio, line = health.highest(lines, "x")
    assert line is not None
    assert ratio == pytest.approx(max(ratios)) and line["step"] == 25 + int(np.argmax(ratios))
    assert health.highest(lines[:25], "x") == (0.0, None)


# ---------------------------------------------------------------- pages
@pytest.mark.draws
@pytest.mark.parametrize("kind", ["moco", "mae", "finetune"])
def test_a_run_leaves_its_curves(kind, tmp_path):
    folder = tmp_path / "run"
    assert go(kind, folder) == 0
    page = (folder / "report.html").read_text()
    shown = titles(page)
    assert shown[0] == "loss" and {"gradient norm", "learning rate", "throughput"} <= set(shown)
    scored = {"top-1 accuracy"} if kind == "finetune" else {"kNN accuracy", "feature spread", "effective rank"}
    assert scored <= set(shown)
    tags = Tags(page)
    assert tags.open == [] and tags.outside == []
    for drawing in re.findall(r"<svg.*?</svg>", page, re.S):
        ElementTree.fromstring(drawing)
    assert page == report.render(folder)


def test_a_spike_of_the_first_layer_is_reported(tmp_path):
    lines = [step(number, first_layer_gradient=40.0 if number == 150 else 0.5) for number in range(1, 201)]
    page = report.render(write_metrics(tmp_path / "run", lines))
    assert "first layer, highest spike: 40 at epoch 1.5 (step 150), 80.0 times the steps before" in page


def test_what_is_not_finite_is_reported_and_drawn_around(tmp_path):
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


@pytest.mark.draws
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


# ---------------------------------------------------------------- files of others
def test_the_page_of_a_run_replaces_its_own_and_no_other_file(tmp_path, capsys):
    folder = write_metrics(tmp_path / "run", [step(1)])
    for _ in range(2):
        assert main(["report", str(folder)]) == 0
    (folder / "report.html").write_text("<html>my notes</html>")
    assert "is not a page that triport wrote" in failed(capsys, main(["report", str(folder)]))
    assert (folder / "report.html").read_text() == "<html>my notes</html>"


PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c63606060f80f0001040100d2a9ee0b0000000049454e44ae426082"
)


def test_optional_sections_appear_where_their_files_are(tmp_path):
    folder = write_metrics(tmp_path / "run", [step(1)])
    assert "<img" not in report.render(folder)
    (folder / "views.png").write_bytes(PNG)
    (folder / "reconstructions").mkdir()
    for number in range(0, 200, 10):
        (folder / "reconstructions" / f"epoch_{number}.png").write_bytes(PNG)
    projection = {"points": [[0, 1], [1, 0], [2, 2]], "labels": [0, 1, 1], "classes": ["<cat>", "dog"]}
    (folder / "projection.json").write_text(json.dumps(projection))
    text = report.render(folder)
    assert text.count("<img") == 1 + 7 and "epoch 190" in text  # the last epoch, and evenly chosen ones before it
    assert text.index("epoch 10<") < text.index("epoch 100<") and "What the network sees" in text
    assert "&lt;cat&gt;" in text and Tags(text).open == [] and Tags(text).outside == []
    (folder / "projection.json").write_text("{")
    assert "projection.json cannot be read" in report.render(folder)


def test_settings_are_the_differences_from_the_shipped_recipe(tmp_path):
    folder = write_metrics(tmp_path / "run", [step(1)])
    (folder / "recipe.toml").write_text(recipes.to_toml(recipes.load("tiny/moco_vit_tiny")))
    assert "Every field as in the shipped recipe tiny/moco_vit_tiny" in report.render(folder)
    (folder / "recipe.toml").write_text(recipes.to_toml(recipes.load("tiny/moco_vit_tiny", ["lr=0.125"])))
    assert re.search(r"<td>optimizer.lr</td><td>[\d.]+</td><td>0.125</td>", report.render(folder))


def test_a_run_of_half_a_million_steps_keeps_its_peak_on_a_small_page(tmp_path):
    lines = [step(n, loss=2.0 if n != 333_335 else 77.0) for n in range(5, 500_001, 5)]  # as such a run records them
    text = report.render(write_metrics(tmp_path / "run", lines))
    assert len(text) < 1_000_000
    (loss,) = re.findall(r'<h3>loss</h3>.*?<path d="([^"]*)" style="fill: none; stroke: var\(--c0\)', text, re.S)
    heights = [float(y) for y in re.findall(r"^[ML] [\d.]+ ([\d.]+)$", loss.rpartition('d="')[2], re.M)]
    assert sum(y < 30 for y in heights) == 1 and max(heights) > 200


def test_missing_matplotlib_is_one_line(tmp_path, monkeypatch, capsys):
    folder = write_metrics(tmp_path / "run", [step(1)])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install matplotlib" in failed(capsys, main(["report", str(folder)]))
