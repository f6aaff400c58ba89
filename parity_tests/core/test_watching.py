"""What a run is watched by: the online probe, baselines and pictures; none of it changes a bit of the training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triport.core.backend.learner import Alone
from triport.core.errors import UserError
from triport.core.evaluate import baselines, projection, representation
from triport.core.evaluate.online_probe import OnlineProbe
from triport.core.evaluate.reconstruction import pictured
from triport.core.evaluate.scoring import Scoring
from triport.core.model import masking
from triport.core.model.patches import patchify, statistics
from triport.core.record import checkpoint, pictures
from triport.core.rng import generator
from triport.core.run import drawing, run
from triport.core.spec import MonitorSpec
from triport.core.spec import recipe as recipes
from triport.parity_tests.fixtures import numpy_learner, toy
from triport.parity_tests.fixtures.ranks import Threads, run_ranks
from triport.parity_tests.fixtures.toy import EPOCHS, TOTAL, assert_same_run, go, last, metrics, whole

OFF = ("monitor.probe=false", "monitor.baselines=false", "monitor.pictures=false")


def rows_of(seed: str, count: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Features of three classes that a line can tell apart, on scales as different as encoders give them."""
    rng = generator(0, seed)
    labels = rng.permutation(np.arange(count) % 3)
    centres = generator(0, "centres").normal(size=(3, 20)) * 3
    rows = (centres[labels] + rng.normal(size=(count, 20))) * np.geomspace(1e-2, 1e2, 20) + 5
    return rows.astype(np.float32), labels


# ---------------------------------------------------------------- the probe alone
def test_the_probe_learns_what_a_linear_probe_learns_from_the_same_features():
    (rows, labels), (test, answers) = rows_of("train"), rows_of("test")
    probe = OnlineProbe(20, 3)
    seen = [probe.learn(rows[at : at + 50], labels[at : at + 50], at / 600) for at in range(0, 600, 50)]
    assert seen[0]["probe_loss"] == pytest.approx(np.log(3), rel=1e-5)  # it starts at 0
    assert seen[-1]["probe_loss"] < 0.2 and seen[-1]["probe_accuracy"] > 0.9
    reference = representation.linear_probe(representation.Features(rows, labels), 3)
    own = (probe.logits(test).argmax(axis=1) == answers).mean()
    assert own >= reference.accuracy(representation.Features(test, answers)) - 0.03 and own > 0.9


def test_the_probes_gradient_is_the_slope_of_its_loss():
    rows, labels = rows_of("train", 60)
    probe = OnlineProbe(20, 3)
    probe.learn(rows, labels, 0.0)
    before = probe.arrays()
    loss = probe.learn(rows, labels, 0.0)["probe_loss"]
    step = (before["weight"] - probe.weight).astype(np.float64)  # rate (0.9 velocity + gradient)
    gradient = step / 4.0 - 0.9 * before["weight_velocity"]
    small = 1e-2
    moved = OnlineProbe(20, 3)
    moved.load(
        {**before, "weight": (before["weight"] + small * gradient / np.linalg.norm(gradient)).astype(np.float32)}
    )
    slope = (moved.learn(rows, labels, 0.0)["probe_loss"] - loss) / small
    assert slope == pytest.approx(np.linalg.norm(gradient), rel=0.05)


def test_rows_without_a_label_teach_nothing():
    rows, labels = rows_of("train", 60)
    some, all_known = OnlineProbe(20, 3), OnlineProbe(20, 3)
    assert OnlineProbe(20, 3).learn(rows, np.full(60, -1), 0.0) == {}
    hidden = np.where(np.arange(60) % 2, labels, -1)
    assert some.learn(rows, hidden, 0.0) == all_known.learn(rows[1::2], labels[1::2], 0.0)
    assert all(np.array_equal(a, b) for a, b in zip(some.arrays().values(), all_known.arrays().values()))


def test_a_probe_of_other_classes_is_not_taken_over():
    with pytest.raises(UserError, match=r"monitor\.probe=false"):
        OnlineProbe(20, 3).load(OnlineProbe(20, 4).arrays())


# ---------------------------------------------------------------- in a run
@pytest.mark.parametrize("kind", ["moco", "mae"])
def test_nothing_that_watches_changes_the_training(tmp_path, kind):
    assert go(kind, tmp_path / "bare", *OFF) == 0
    watched, bare = whole(kind), tmp_path / "bare"
    strip = ("probe_loss", "probe_accuracy")
    steps = [{name: value for name, value in line.items() if name not in strip} for line in metrics(watched)]
    assert steps == metrics(bare) and all("probe_loss" in line for line in metrics(watched))
    arrays, other = last(watched)[0], last(bare)[0]
    assert {name: a for name, a in arrays.items() if not name.startswith("probe/")} == other
    assert not {"views.png", "projection.json", "baselines.json", "reconstructions"} & {p.name for p in bare.iterdir()}
    scores = metrics(watched, "epoch")
    assert all(0 <= line["probe"] <= 1 for line in scores) and len({line["probe"] for line in scores}) > 1
    assert [{k: v for k, v in line.items() if k != "probe"} for line in scores] == metrics(bare, "epoch")


def test_the_probe_is_in_checkpoints_and_goes_on_to_the_same_bits(tmp_path):
    folder = tmp_path / "run"
    assert go("mae", folder, "--stop-after-steps", "8") == 0
    groups, _ = checkpoint.load(folder / "checkpoints" / "last")
    assert groups["probe"]["batches"] == 8 and np.abs(groups["probe"]["weight"]).max() > 0
    assert go("mae", folder, "--resume") == 0
    assert_same_run(whole("mae"), folder)
    assert int(checkpoint.load(checkpoint.latest(folder))[0]["probe"]["batches"]) == TOTAL


def test_a_probe_can_be_switched_on_for_the_rest_of_a_run(tmp_path):
    assert go("mae", tmp_path / "run", "monitor.probe=false", "--stop-after-steps", "6") == 0
    assert go("mae", tmp_path / "run", "--resume") == 0
    lines = metrics(tmp_path / "run")
    assert ["probe_loss" in line for line in lines] == [False] * 6 + [True] * 12
    assert [line["loss"] for line in lines] == [line["loss"] for line in metrics(whole("mae"))]


def test_a_rollback_takes_the_probe_back_too(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMPY_LEARNER_FAULTS", "8")
    assert go("mae", tmp_path / "run", "--on-nonfinite", "rollback") == 0
    groups, _ = checkpoint.load(checkpoint.latest(tmp_path / "run"))
    assert int(groups["probe"]["batches"]) == TOTAL


def test_ranks_train_one_probe(tmp_path):
    def of_rank(processes: Threads) -> int:
        backend = run.Backend("numpy", lambda device: processes, numpy_learner.make)
        return go("mae", tmp_path / "run", backend=backend)

    assert run_ranks(2, of_rank) == [0, 0]
    for mine, other in zip(metrics(tmp_path / "run"), metrics(whole("mae")), strict=True):
        assert mine["probe_loss"] == pytest.approx(other["probe_loss"], rel=1e-4)
    assert json.loads((tmp_path / "run" / "baselines.json").read_text()) == json.loads(
        (whole("mae") / "baselines.json").read_text()
    )


def test_images_without_labels_have_neither_probe_nor_baselines(tmp_path):
    for split, count in (("train", 96), ("test", 40)):
        (tmp_path / "data").mkdir(exist_ok=True)
        images = np.load(toy.shared_data() / f"{split}.npz")["images"]
        np.savez(tmp_path / "data" / f"{split}.npz", images=images[:count])
    assert go("mae", tmp_path / "run", data=tmp_path / "data") == 0
    assert not any("probe_loss" in line for line in metrics(tmp_path / "run"))
    assert not (tmp_path / "run" / "baselines.json").exists() and (tmp_path / "run" / "views.png").is_file()


# ---------------------------------------------------------------- baselines
def test_baselines_are_those_of_brute_force():
    found = json.loads((whole("moco") / "baselines.json").read_text())
    data = {split: np.load(toy.shared_data() / f"{split}.npz") for split in ("train", "test")}
    rows = {split: part["images"].reshape(len(part["labels"]), -1) / 255.0 for split, part in data.items()}
    unit = {split: part / np.linalg.norm(part, axis=1, keepdims=True) for split, part in rows.items()}
    similar = unit["test"] @ unit["train"].T
    best = np.argsort(-similar, axis=1, kind="stable")[:, :5]
    votes = np.zeros((40, 10))
    for row, places in enumerate(best):
        for place in places:
            votes[row, data["train"]["labels"][place]] += np.exp(similar[row, place] / 0.07)
    right = (votes.argmax(axis=1) == data["test"]["labels"]).mean()
    assert found["raw pixels"] == pytest.approx(right, abs=1.01 / 40) and found["chance"] == 0.1
    assert "among 96 training images" in found["about"] and "40 held-out" in found["about"]


def test_a_classifier_has_baselines_too():
    found = json.loads((whole("finetune") / "baselines.json").read_text())
    assert {"chance", "raw pixels", "the encoder before training"} <= found.keys()
    assert found["raw pixels"] == json.loads((whole("mae") / "baselines.json").read_text())["raw pixels"]


def test_the_largest_class_is_reported_of_where_it_is_more_than_chance():
    assert baselines.chance(np.array([0, 1, 2, 3]), 4) == {"chance": 0.25}
    assert baselines.chance(np.array([0, 0, 0, 1]), 4) == {"chance": 0.25, "largest class": 0.75}
    assert baselines.shrunk(np.zeros((100, 60, 3), np.uint8)).shape == (32, 32, 3)
    assert MonitorSpec().probe is False and MonitorSpec().baselines is True


# ---------------------------------------------------------------- pictures
def test_a_run_draws_its_views_reconstructions_and_features():
    for kind in ("moco", "mae"):
        folder = whole(kind)
        with Image.open(folder / "views.png") as views:
            assert views.width > 100 and np.ptp(np.asarray(views)) > 0
        found = json.loads((folder / "projection.json").read_text())
        assert found["epoch"] == EPOCHS and len(found["points"]) == len(found["labels"]) == 40
        assert 0 < found["share"] <= 1 and len(found["classes"]) == 10
    drawn = sorted(path.name for path in (whole("mae") / "reconstructions").iterdir())
    assert drawn == [f"epoch_{n}.png" for n in range(EPOCHS + 1)]
    assert not (whole("moco") / "reconstructions").exists()
    first, after = (np.asarray(Image.open(whole("mae") / "reconstructions" / name)) for name in drawn[::EPOCHS])
    third = len(first) // 3
    assert np.array_equal(first[:third], after[:third]) and np.array_equal(first[-third:], after[-third:])
    assert not np.array_equal(first, after)  # the same pictures and masks, other reconstructions
    assert all(path.stat().st_size < 300_000 for kind in ("moco", "mae") for path in whole(kind).rglob("*.png"))


def test_a_long_run_without_knn_draws_fifty_times():
    monitor = MonitorSpec(knn_every=0)
    watched = Scoring(None, Alone(), monitor, 800, [])  # type: ignore[arg-type]
    drawn = [epoch for epoch in range(801) if watched._drawn(epoch)]
    assert drawn[:3] == [0, 16, 32] and drawn[-1] == 800 and len(drawn) == 51


def test_the_views_are_those_that_training_sees():
    recipe = recipes.load(str(whole("moco") / "recipe.toml"))
    images = np.load(toy.shared_data() / "train.npz")["images"]
    sheet = np.asarray(Image.open(whole("moco") / "views.png"))[..., 0]
    factor = drawing.CELL // recipe.model.encoder.image[0]
    for view in range(2):
        drawn = drawing.view_of(images[0], 0, recipe.train, view, recipe.seed, 0)[..., 0]
        top, side = view * (factor * len(drawn) + pictures.GAP), factor * len(drawn)
        assert np.array_equal(sheet[top : top + side : factor, :side:factor], drawn)


def test_a_perfect_prediction_is_the_picture_itself():
    recipe = recipes.load("tiny/test_mae_vit")
    images = generator(0, "images").normal(0, 0.3, (2, 1, 16, 16)).astype(np.float32)
    rows = patchify(images.astype(np.float64), (4, 4))
    mean, deviation = statistics(rows)
    mask = masking.mask(masking.noise(0, 0, range(2), 16), 0.75).mask
    found = pictured(recipe.model, recipe.evaluate, images, (rows - mean) / deviation, mask)
    assert np.array_equal(found.pasted, found.original) and np.abs(found.losses).max() < 1e-20
    hidden = mask.reshape(2, 4, 4).repeat(4, axis=1).repeat(4, axis=2) > 0
    assert (found.masked[hidden] == 128).all() and np.array_equal(found.masked[~hidden], found.original[~hidden])


def test_a_plane_keeps_what_tells_features_apart():
    rows, labels = rows_of("plane", 90)
    found = projection.plane(rows, labels, ["a", "b", "c"], 4)
    points = np.array(found["points"])
    again = projection.plane(rows, labels, ["a", "b", "c"], 4)
    assert found == again and found["classes"] == ["a", "b", "c"] and points.shape == (90, 2)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    values = np.linalg.svd(unit - unit.mean(axis=0), compute_uv=False)
    assert points.std(axis=0) == pytest.approx(values[:2] / np.sqrt(90), rel=1e-2)
    unknown = projection.plane(rows, np.full(90, -1), [], 4)
    assert unknown["classes"] == ["held-out images"] and set(unknown["labels"]) == {0}


def test_files_stay_small(tmp_path):
    noise = generator(0, "noise").integers(0, 256, (900, 900, 3)).astype(np.uint8)
    pictures.write(tmp_path / "noise.png", Image.fromarray(noise), 50_000)
    with Image.open(tmp_path / "noise.png") as picture:
        assert (tmp_path / "noise.png").stat().st_size <= 50_000 and picture.width > 50
    assert [path.name for path in tmp_path.iterdir()] == ["noise.png"]


def test_a_picture_that_cannot_be_written_does_not_end_the_run(tmp_path, capfd):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "views.png").mkdir()  # nothing can take its place
    assert go("mae", folder, "--stop-after-steps", "1") == 0
    assert "a picture of the report was left out" in "".join(capfd.readouterr())
    assert Path(folder / "metrics.jsonl").is_file()
