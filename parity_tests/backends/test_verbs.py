"""predict, embed, neighbours, reconstruct, attention and measure on each framework here, their numbers checked."""

from __future__ import annotations

import csv
import io
import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import triport
from triport.core.data.datasets import open_dataset
from triport.core.errors import UserError
from triport.core.spec import DataSpec
from triport.verbs import embed, model, predict, start

LABELS = ("Trouser", "Pullover", "Dress")  # 1, 2 and 3 of the shipped images


@pytest.fixture(scope="session")
def framework(probe):
    return probe.__name__.split(".")[2]


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """12 training and 6 test pictures of three classes, as a folder tree of PNG files."""
    root = tmp_path_factory.mktemp("photos")
    source = open_dataset(None, "test", DataSpec(name="fashion-mnist"), 1)
    for row, name in enumerate(LABELS, 1):
        same = [i for i in range(400) if source.label(i) == row][:6]
        for place, i in enumerate(same):
            folder = root / ("train" if place < 4 else "val") / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(source.image(i)).squeeze()).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def runs(framework, photos, tmp_path_factory):
    """A short run of each kind: MoCo, MAE, and a linear classifier of three classes."""
    root = tmp_path_factory.mktemp("runs")
    rest = ("batch=8", "--data", photos, "--workers", 0, "--stop-after-steps", 1)
    for kind in ("moco", "mae"):
        given = (f"tiny/test_{kind}_vit", "monitor.knn_every=0", *rest, "--out", root / kind)
        assert run(framework, "pretrain", *given) == 0
    given = ("tiny/test_moco_linear", "schedule.warmup_epochs=0", *rest, "--from-scratch", "--out", root / "linear")
    assert run(framework, "linear", *given) == 0
    return {kind: root / kind for kind in ("moco", "mae", "linear")}


def run(framework, task, *given):
    return import_module(f"triport.backends.{framework}.{task}").main(list(map(str, given)))


def verb(framework, name, *given):
    """Run a verb in this interpreter, as its command does."""
    return start.run([name, *map(str, given), "--backend", framework, "--device", "cpu"])


# ---------------------------------------------------------------- predict
def test_probabilities_are_the_softmax_of_the_logits_by_class_name(framework, photos, runs, capsys):
    files = sorted((photos / "val").rglob("*.png"))
    assert verb(framework, "predict", runs["linear"], photos / "val", "--json", "--top", 3, "--batch", 4) == 0
    found = json.loads(capsys.readouterr().out)["pictures"]
    assert [row["file"] for row in found] == list(map(str, files))
    logits = triport.predict(runs["linear"], files, backend=framework, device="cpu").astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for row, share in zip(found, shares):
        assert abs(sum(answer["probability"] for answer in row["classes"]) - 1) < 1e-12
        told = {answer["class"]: answer["probability"] for answer in row["classes"]}
        assert list(told.values()) == sorted(told.values(), reverse=True)
        assert np.allclose([told[name] for name in sorted(LABELS)], share, rtol=1e-5)


def test_predictions_as_table_and_csv(framework, photos, runs, capsys):
    named = [photos / "val" / "Dress", str(photos / "val" / "T*" / "*.png")]
    assert verb(framework, "predict", runs["linear"], *named, "--top", 3) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all(len(line) <= 80 and "%" in line for line in lines)
    assert verb(framework, "predict", runs["linear"], *named, "--csv", "--top", 2) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert (
        len(rows) == 8 and {row["rank"] for row in rows} == {"1", "2"} and {row["class"] for row in rows} <= {*LABELS}
    )


def test_what_cannot_be_predicted(framework, photos, runs, tmp_path, capsys):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    picture = next((photos / "val").rglob("*.png"))
    assert verb(framework, "predict", runs["linear"], picture, broken, "--csv", "--top", 1) == 0
    seen = capsys.readouterr()
    assert len(seen.out.splitlines()) == 2 and "left out" in seen.err and "broken.png" in seen.err
    for given, message in (
        ((runs["linear"], broken), "none of 1 pictures can be read"),
        ((runs["linear"], tmp_path / "nothing*.png"), "no picture"),
        ((runs["moco"], picture), "no trained head"),
        ((tmp_path / "gone", picture), "is not there"),
    ):
        with pytest.raises(UserError, match=message):
            verb(framework, "predict", *given)


# ---------------------------------------------------------------- embed
@pytest.mark.parametrize("form", ["npz", "parquet"])
def test_features_know_their_pictures(framework, photos, runs, tmp_path, form):
    if form == "parquet":
        pytest.importorskip("pyarrow", reason="parquet files need pyarrow: pip install 'triport[parquet]'")
    out = tmp_path / f"features.{form}"
    assert verb(framework, "embed", runs["moco"], photos, "--out", out) == 0
    found = embed.read(out)
    files = [*sorted((photos / "train").rglob("*.png")), *sorted((photos / "val").rglob("*.png"))]
    assert found.files == list(map(str, files)) and found.splits == ["train"] * 12 + ["val"] * 6
    assert found.class_names() == [Path(file).parent.name for file in found.files]
    assert found.model == model.digest(model.subject(runs["moco"])) and len(found.model) == 64
    rows = triport.embed(runs["moco"], files, backend=framework, device="cpu")
    assert found.rows.shape == (18, 32) and np.allclose(found.rows, rows, atol=1e-5)
    with pytest.raises(UserError, match="exists already"):
        verb(framework, "embed", runs["moco"], photos, "--out", out)


def test_splits_and_flat_folders(framework, photos, runs, tmp_path):
    for given, splits in (((photos, "--split", "val"), {"val": 6}), ((photos / "val" / "Dress",), {"all": 2})):
        out = tmp_path / "features.npz"
        assert verb(framework, "embed", runs["mae"], *given, "--out", out, "--overwrite") == 0
        found = embed.read(out)
        assert {name: found.splits.count(name) for name in found.splits} == splits
    assert found.class_names() == ["", ""] and (found.labels == -1).all()
    with pytest.raises(UserError, match=r"must end in \.npz or \.parquet"):
        verb(framework, "embed", runs["mae"], photos, "--out", tmp_path / "features.txt")
    with pytest.raises(UserError, match="is not a file of features"):
        embed.read(next(photos.rglob("*.png")).with_suffix(".npz"))


def test_lines_of_a_table_fit_its_width():
    long = [predict.Answer(f"{'folder/' * 20}cat.jpg", tuple((f"a class with a long name {n}", 0.2) for n in range(5)))]
    lines = predict.lines(long, 80)
    assert all(len(line) <= 80 for line in lines) and "cat.jpg" in lines[0] and "of 5 classes fit" in lines[-1]
