"""predict, embed, neighbours, reconstruct, attention and measure on each framework here, their numbers checked."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import shutil
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import triport
from triport.core.data.datasets import open_dataset
from triport.core.errors import UserError
from triport.core.evaluate import monitors, representation
from triport.core.model import masking
from triport.core.model.init import initial_values
from triport.core.model.inventory import inventory
from triport.core.record import checkpoint, export
from triport.core.run import resume
from triport.core.spec import Classifier, DataSpec, ModelSpec, ViT, zoo
from triport.core.spec import recipe as recipes
from triport.parity_tests.reference.layers import Walk, layer_norm, vit
from triport.verbs import compare, embed, model, pictures, predict, start

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
    linear = ("tiny/test_moco_linear", "schedule.warmup_epochs=0", *rest, "--from-scratch", "--out", root / "linear")
    assert run(framework, "linear", *linear) == 0
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
    logits = triport.logits(runs["linear"], files, backend=framework, device="cpu").astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    function = triport.predict(runs["linear"], photos / "val", 3, backend=framework, device="cpu", batch=4)
    assert [answer.file for answer in function] == [row["file"] for row in found]
    for answer, row in zip(function, found):
        assert answer.classes == tuple((reported["class"], reported["probability"]) for reported in row["classes"])
        assert (answer.name, answer.probability) == answer.classes[0]
    for row, share in zip(found, shares):
        assert abs(sum(answer["probability"] for answer in row["classes"]) - 1) < 1e-12
        reported = {answer["class"]: answer["probability"] for answer in row["classes"]}
        assert list(reported.values()) == sorted(reported.values(), reverse=True)
        assert np.allclose([reported[name] for name in sorted(LABELS)], share, rtol=1e-5)


def test_pictures_in_memory_are_predicted_as_their_files(framework, photos, runs):
    files = sorted((photos / "val").rglob("*.png"))[:3]
    chosen = {"backend": framework, "device": "cpu"}
    of_files = triport.predict(runs["linear"], files, 1, class_names={"Dress": "a dress"}, **chosen)
    of_images = triport.predict(runs["linear"], [Image.open(file) for file in files], 1, **chosen)
    assert [answer.file for answer in of_images] == ["image 0", "image 1", "image 2"]
    for one, other in zip(of_files, of_images):
        assert one.name == {"Dress": "a dress"}.get(other.name, other.name)
        assert one.probability == pytest.approx(other.probability, rel=1e-6)
    with pytest.raises(UserError, match="no trained head"):
        triport.predict(runs["moco"], files, **chosen)
    with pytest.raises(UserError, match="no picture was named"):
        triport.predict(runs["linear"], [], **chosen)


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
    named = triport.embed(runs["moco"], photos, named=True, split="val", backend=framework, device="cpu")
    assert named.files == found.files[12:] and named.model == found.model
    assert np.allclose(named.rows, found.rows[12:], atol=1e-5) and set(named.splits) == {"val"}
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
    long = [
        predict.Prediction(f"{'folder/' * 20}cat.jpg", tuple((f"a class with a long name {n}", 0.2) for n in range(5)))
    ]
    lines = predict.lines(long, 80)
    assert all(len(line) <= 80 for line in lines) and "cat.jpg" in lines[0] and "of 5 classes fit" in lines[-1]


# ---------------------------------------------------------------- neighbours
def test_neighbours_are_those_of_brute_force(framework, photos, runs, tmp_path, capsys):
    out, sheet = tmp_path / "features.npz", tmp_path / "sheet.html"
    assert verb(framework, "embed", runs["moco"], photos, "--out", out, "--split", "train") == 0
    found = triport.neighbours(runs["moco"], [photos / "val"], out, 5, backend=framework, device="cpu")
    queries = sorted((photos / "val").rglob("*.png"))
    rows = triport.embed(runs["moco"], queries, backend=framework, device="cpu").astype(np.float64)
    known = embed.read(out).rows.astype(np.float64)
    cosines = (rows / np.linalg.norm(rows, axis=1)[:, None]) @ (known / np.linalg.norm(known, axis=1)[:, None]).T
    assert found.queries == list(map(str, queries)) and found.places.shape == (6, 5)
    best = -np.sort(-cosines, axis=1)[:, :5]
    assert np.allclose(found.similarities, best, atol=1e-5)
    assert np.allclose(np.take_along_axis(cosines, found.places, axis=1), best, atol=1e-5)
    given = (runs["moco"], photos / "val", "--among", photos, "--k", 3, "--page", sheet)
    assert verb(framework, "neighbours", *given) == 0
    text = sheet.read_text()
    assert text.count("<img") == 6 * 4 and str(sheet) in capsys.readouterr().out
    with pytest.raises(UserError, match="of another model"):
        triport.neighbours(runs["mae"], queries, out, backend=framework, device="cpu")


def test_a_picture_is_not_its_own_neighbour(framework, photos, runs):
    found = triport.neighbours(runs["mae"], [photos / "train"], photos / "train", 3, backend=framework, device="cpu")
    assert all(query != found.among.files[place] for query, row in zip(found.queries, found.places) for place in row)
    assert found.places.shape == (12, 3)


# ---------------------------------------------------------------- reconstruct
def shown_to(run, files):
    recipe = recipes.parse(checkpoint.read_state(checkpoint.latest(run))["recipe"], Path("recipe.toml"))
    return recipe, pictures.normalised(recipe, pictures.read_files(recipe, files)[1])


def test_a_reconstruction_is_the_models_own_output(framework, probe, photos, runs, tmp_path):
    files, page = sorted((photos / "val").rglob("*.png")), tmp_path / "page.html"
    found = triport.reconstruct(runs["mae"], files, 0.5, 3, backend=framework, device="cpu", batch=4)
    recipe, images = shown_to(runs["mae"], files)
    noise = masking.noise(3, 0, range(6), 16)
    spec = recipe.model
    spec = replace(spec, objective=replace(spec.objective, mask_ratio=0.5))
    arrays = resume.load(checkpoint.latest(runs["mae"]))[0]["model"]
    own = probe.forward(spec=spec, arrays=arrays, inputs={"images": images, "mask_noise": noise})
    assert np.allclose(found.prediction, own["prediction"], atol=1e-5) and np.array_equal(found.mask, own["mask"])
    assert (found.mask.sum(axis=1) == 8).all() and np.isclose(found.losses.mean(), own["loss"], rtol=1e-5)
    # what is shown, normalised by the original's patches again, is the prediction
    patches = images.reshape(6, 1, 4, 4, 4, 4).transpose(0, 2, 4, 3, 5, 1).reshape(6, 16, 16).astype(np.float64)
    mean, deviation = patches.mean(axis=2, keepdims=True), patches.std(axis=2, ddof=1, keepdims=True)
    assert np.allclose((found.pixels - mean) / np.sqrt(deviation**2 + 1e-6), own["prediction"], atol=1e-4)
    hidden = found.mask.reshape(6, 4, 4).repeat(4, axis=1).repeat(4, axis=2)[..., None] > 0
    assert np.array_equal(found.pasted[~hidden], found.original[~hidden])
    assert np.array_equal(found.pasted[hidden], found.reconstruction[hidden]) and (found.masked[hidden] == 128).all()
    assert verb(framework, "reconstruct", runs["mae"], photos / "val", "--page", page, "--seed", 3) == 0
    text = page.read_text()
    assert text.count("<img") == 6 * 4 and "own mean and variance" in text


def test_reconstructions_of_a_file_of_the_original_layout(framework, photos, runs, tmp_path):
    files, target = sorted((photos / "val").rglob("*.png"))[:2], tmp_path / "mae_pretrain.pth"
    triport.convert(runs["mae"], target, to="mae")
    chosen = {"recipe": "tiny/test_mae_vit", "target": "normalised", "backend": framework, "device": "cpu"}
    of_file, of_run = (
        triport.reconstruct(where, files, **(chosen if where == target else {"backend": framework, "device": "cpu"}))
        for where in (target, runs["mae"])
    )
    assert np.array_equal(of_file.prediction, of_run.prediction)
    encoder = tmp_path / "encoder.safetensors"
    whole = model.autoencoder(runs["mae"])
    export.write_encoder(encoder, whole.recipe, whole.arrays)
    for where, message in (
        (encoder, "no decoder"),
        (runs["moco"], "has no decoder"),
        (tmp_path / "gone", "is not there"),
    ):
        with pytest.raises(UserError, match=message) as reported:
            triport.reconstruct(where, files, backend=framework, device="cpu")
        assert "\n" not in str(reported.value)
    with pytest.raises(UserError, match="none of 16 patches hidden or visible"):
        triport.reconstruct(runs["mae"], files, 0.99, backend=framework, device="cpu")


def test_a_named_model_is_known_by_its_arrays_and_its_target_is_asked_for(framework, tmp_path):
    spec, plain, target = zoo.find("mae_vit_tiny").spec, tmp_path / "plain.safetensors", tmp_path / "mae.pth"
    checkpoint.write_arrays(plain, initial_values(spec, 0))
    triport.convert(plain, target, to="mae")
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)).save(picture)
    with pytest.raises(UserError, match="--target pixels"):
        triport.reconstruct(target, [picture], backend=framework, device="cpu")
    raw = triport.reconstruct(target, [picture], target="pixels", backend=framework, device="cpu")
    found = triport.reconstruct(target, [picture], target="normalised", backend=framework, device="cpu")
    assert np.array_equal(raw.prediction, found.prediction) and np.allclose(raw.pixels, raw.prediction)
    assert not np.allclose(found.pixels, raw.pixels)
    assert model.subject(target).recipe.model.encoder == spec.encoder


def test_heads_that_arrays_do_not_tell_are_asked_for(tmp_path):
    path = tmp_path / "small.safetensors"
    spec = ModelSpec(
        encoder=zoo.find("moco_v3_vit_small").spec.encoder,
        objective=Classifier(classes=10, pooling="token", head_std=0.01),
    )
    checkpoint.write_arrays(path, {p.name: np.zeros(p.shape, np.float32) for p in inventory(spec)})
    with pytest.raises(UserError, match=r"width 384 has 6 \(DeiT, timm\) or 12 \(MoCo v3\): name its recipe"):
        model.subject(path)
    found = model.subject(path, "transfer/moco_vit_small_linear").recipe.model.encoder
    assert isinstance(found, ViT) and found.heads == 12


# ---------------------------------------------------------------- attention
@pytest.mark.parametrize("kind", ["moco", "mae", "linear"])
def test_attention_is_the_references(framework, photos, runs, kind, tmp_path):
    files = sorted((photos / "val").rglob("*.png"))[:3]
    found = triport.attention(runs[kind], files, backend=framework, device="cpu")
    subject = model.subject(runs[kind])
    encoder = subject.recipe.model.encoder
    assert isinstance(encoder, ViT) and found.heads.shape == (3, encoder.heads, 1 + 16)
    assert np.allclose(found.heads.sum(axis=2), 1, atol=1e-12) and np.allclose(found.rollout.sum(axis=1), 1, atol=1e-12)
    _, images = shown_to(runs[kind], files)
    walk = Walk(subject.arrays, watched=True)
    tokens = layer_norm(walk, "norm", vit(walk, "", encoder, images.astype(np.float64)), encoder.norm_eps)
    blocks = []
    for block in range(encoder.depth):
        rows = walk.outputs[f"blocks.{block}.norm1"] @ np.float64(subject.arrays[f"blocks.{block}.attn.qkv.weight"]).T
        rows = rows + subject.arrays[f"blocks.{block}.attn.qkv.bias"]
        query, key, _ = rows.reshape(3, 17, 3, encoder.heads, -1).transpose(2, 0, 3, 1, 4)
        scores = np.exp(np.einsum("nhqd,nhkd->nhqk", query, key) / query.shape[-1] ** 0.5)
        blocks.append(scores / scores.sum(axis=-1, keepdims=True))
    assert np.allclose(found.heads, blocks[-1][:, :, 0], atol=1e-5)
    half = [(np.eye(17) + block.mean(axis=1)) / 2 for block in blocks]
    assert np.allclose(found.rollout, (half[1] @ half[0])[:, 0], atol=1e-5)
    assert np.allclose(found.features, tokens[:, 1:], atol=1e-4)
    assert found.colours.shape == (3, 4, 4, 3) and found.colours.min() == 0 and found.colours.max() == 1
    page = tmp_path / "page.html"
    assert verb(framework, "attention", runs[kind], *files, "--page", page) == 0
    assert page.read_text().count("<img") == 3 * (3 + encoder.heads)


# ---------------------------------------------------------------- measure
def test_measures_are_those_of_the_features(framework, photos, runs, tmp_path, capsys):
    given = (runs["moco"], "--data", photos, "--out", tmp_path)
    assert verb(framework, "measure", *given) == 0
    report = json.loads((tmp_path / "measure.json").read_text())
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines()[:-1]) and str(tmp_path / "measure.html") in shown
    assert set(report["scores"]) == {"trained", "raw_pixels", "untrained"} and report["classes"] == sorted(LABELS)
    assert report["chance"] == {"uniform": 1 / 3, "largest class": 1 / 3}
    files = {split: sorted((photos / split).rglob("*.png")) for split in ("train", "val")}
    labels = {split: np.array([sorted(LABELS).index(f.parent.name) for f in files[split]]) for split in files}
    rows = {s: triport.embed(runs["moco"], files[s], backend=framework, device="cpu") for s in files}
    train, test = (representation.Features(rows[split], labels[split]) for split in ("train", "val"))
    own = report["scores"]["trained"]
    assert own["knn"] == {str(k): v for k, v in representation.knn(train, test, 3).items()} and set(own["knn"]) == {
        "10"
    }
    probe = representation.linear_probe(train, 3)
    assert own["linear_probe"]["accuracy"] == probe.accuracy(test)
    assert own["logistic_regression"]["accuracy"] == representation.logistic_regression(train, 3).accuracy(test)
    assert np.isclose(own["effective_rank"], monitors.effective_rank(rows["val"]), rtol=1e-4)
    assert np.mean(own["few_shot"]["0.1"]["draws"]) == own["few_shot"]["0.1"]["mean"]
    assert own["lidar"]["images"] == 12 and own["lidar"]["views"] == 10 and 1 <= own["lidar"]["rank"] <= 12
    assert (
        own["lidar"] != report["scores"]["untrained"]["lidar"]
        and report["confusion"] == probe.per_class(test, 3).tolist()
    )
    table = probe.per_class(test, 3)
    assert list(report["per_class"].values()) == (np.diag(table) / table.sum(axis=1)).tolist()
    recipe, _ = shown_to(runs["moco"], files["val"])
    raw = {s: pictures.read_files(recipe, files[s])[1].reshape(len(files[s]), -1) / np.float32(255) for s in files}
    pixels = {s: representation.Features(raw[s].astype(np.float32), labels[s]) for s in files}
    scores = representation.knn(pixels["train"], pixels["val"], 3)
    assert report["scores"]["raw_pixels"]["knn"] == {str(k): v for k, v in scores.items()}
    text = (tmp_path / "measure.html").read_text()
    assert "<svg" in text and "untrained network" in text and "raw pixels" in text
    with pytest.raises(UserError, match="exists already"):
        verb(framework, "measure", *given)


def test_measuring_on_the_test_split_with_n_labels_per_class(framework, photos, runs, tmp_path):
    shutil.copytree(photos / "train", tmp_path / "data" / "train")
    shutil.copytree(photos / "val", tmp_path / "data" / "test")
    chosen = {"backend": framework, "device": "cpu", "baselines": False}
    found = triport.measure(runs["mae"], tmp_path / "data", split="test", few_shot=["2", "50%"], **chosen).report
    own = found["scores"]["trained"]
    assert set(own["few_shot"]) == {"2 per class", "0.5"} and found["split"] == "test" and "lidar" not in own
    assert len(own["few_shot"]["2 per class"]["draws"]) == 5 and set(found["scores"]) == {"trained"}
    files = {split: sorted((photos / split).rglob("*.png")) for split in ("train", "val")}
    rows = {s: triport.embed(runs["mae"], files[s], backend=framework, device="cpu") for s in files}
    labels = {split: np.array([sorted(LABELS).index(f.parent.name) for f in files[split]]) for split in files}
    train, test = (representation.Features(rows[split], labels[split]) for split in ("train", "val"))
    wanted = representation.few_shot(train, test, 3, per_class=2)
    assert own["few_shot"]["2 per class"]["draws"] == list(wanted.draws)
    for wrong in ("0", "x", "200%"):
        with pytest.raises(UserError, match="few-shot"):
            triport.measure(runs["mae"], photos, few_shot=[wrong], **chosen)


def test_what_cannot_be_measured(framework, photos, runs, tmp_path):
    for data, message in ((photos / "val", "training and test images are the same"), (tmp_path / "gone", "no file")):
        with pytest.raises(UserError, match=message):
            verb(framework, "measure", runs["moco"], "--data", data, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- what the documents say
ROOT = Path(__file__).resolve().parents[2]
VERBS = (*start.NAMES, "compare")


def blocks(page, language):
    """The blocks of a page in a language, as their lines."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [block.splitlines() for block in found]


@pytest.fixture
def tour(framework, photos, runs, tmp_path, monkeypatch):
    """A folder in which the documents' names mean something."""
    for kind, folder in runs.items():
        shutil.copytree(folder, tmp_path / "runs" / kind)
    shutil.copytree(runs["moco"], tmp_path / "runs" / "a")
    shutil.copytree(runs["mae"], tmp_path / "runs" / "b")
    (tmp_path / "photos").symlink_to(photos)
    for name, file in zip(("cat.jpg", "dog.jpg"), sorted((photos / "val").rglob("*.png"))):
        Image.open(file).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_readmes_tour_runs_as_it_is_written(framework, tour, capsys):
    lines = [line for block in blocks("README.md", "") for line in block if "my_photos" not in line]  # test_photos's
    printed = [
        shlex.split(line, comments=True)[1:] for line in lines if re.match(rf"triport ({'|'.join(VERBS)}) ", line)
    ]
    assert [words[0] for words in printed] == ["predict", "embed", "neighbours", "attention", "reconstruct", "measure",
                                            "export", "compare"]  # fmt: skip
    for words in printed:
        given = [str(tour / "photos") if word == "/data/imagenet" else word for word in words]
        if given[0] == "compare":
            assert compare.main(given[1:]) == 0
        elif given[0] == "export":
            if framework == "torch" and all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))):
                assert start.run(given) == 0
        else:
            assert verb(framework, *given) == 0
    for name in ("features.npz", "neighbours.html", "attention.html", "reconstruct.html", "compare.html"):
        assert (tour / name).stat().st_size > 1000, name
    assert {"measure.json", "measure.html"} <= {path.name for path in (tour / "runs" / "moco").iterdir()}


def test_the_functions_of_the_documents_do_what_is_written(framework, tour, capsys):
    (lines,) = [block for block in blocks("docs/measuring.md", "python") if "import triport" in block]
    onnx = framework == "torch" and all(map(find_spec, ("onnx", "onnxscript", "onnxruntime")))
    found: dict[str, Any] = {}
    exec("\n".join(line for line in lines if onnx or "triport.export" not in line), found)
    assert found["logits"].shape == (2, 3) and found["rows"].shape == (2, 32)
    assert found["features"].rows.shape == (18, 32) and found["nearest"].places.shape == (1, 8)
    assert found["pictures"].original.shape == (18, 16, 16, 1) and found["maps"].heads.shape[0] == 18
    assert set(found["report"]["scores"]["trained"]["few_shot"]) == {"0.01", "5 per class"}
    assert set(found["compared"].runs) == {"a", "b"} and (tour / "compare.html").is_file()
    assert len(capsys.readouterr().out.splitlines()) == 18


# ---------------------------------------------------------------- export
@pytest.mark.parametrize(("kind", "part"), [("moco", None), ("mae", None), ("linear", None), ("linear", "encoder")])
def test_onnx_files_compute_the_same(framework, photos, runs, tmp_path, kind, part, capsys):
    if framework != "torch":
        with pytest.raises(UserError, match="PyTorch is not installed in this interpreter"):
            triport.export(runs[kind], tmp_path / "model.onnx", part=part)
        return
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"ONNX needs {package}: pip install 'triport[onnx]'")
    runtime = import_module("onnxruntime")
    out = tmp_path / "model.onnx"
    more = ("--part", part) if part else ()
    assert start.run(["export", str(runs[kind]), str(out), "--to", "onnx", *more]) == 0
    shown = capsys.readouterr().out
    assert "opset 18" in shown and "of the largest output" in shown
    files = sorted((photos / "val").rglob("*.png"))
    _, images = shown_to(runs[kind], files)
    session = runtime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    function = triport.logits if kind == "linear" and part is None else triport.embed
    for count in (1, 5):
        wanted = function(runs[kind], images[:count], backend="torch", device="cpu")
        (made,) = session.run(None, {"images": images[:count]})
        assert made.shape == wanted.shape and np.abs(made - wanted).max() <= 1e-5 * np.abs(wanted).max()
    words = session.get_modelmeta().custom_metadata_map
    assert words["model"] == model.digest(model.subject(runs[kind])) and json.loads(words["mean"])
    assert ("classes" in words) == (function is triport.logits)
    with pytest.raises(UserError, match="exists already"):
        triport.export(runs[kind], out)


def test_what_cannot_be_exported(framework, runs, tmp_path):
    with pytest.raises(UserError, match=r"must end in \.onnx"):
        triport.export(runs["moco"], tmp_path / "model.bin")
    with pytest.raises(UserError, match="ONNX files come from torch or paddle, not oneflow"):
        start.run(["export", str(runs["moco"]), str(tmp_path / "m.onnx"), "--to", "onnx", "--backend", "oneflow"])
    wanted = r"paddle2onnx: pip install paddle2onnx onnx" if framework == "paddle" else "Paddle is not installed"
    if framework != "paddle" or find_spec("paddle2onnx") is None:
        with pytest.raises(UserError, match=wanted):
            start.run(["export", str(runs["moco"]), str(tmp_path / "m.onnx"), "--to", "onnx", "--backend", "paddle"])


def test_onnx_files_of_paddle_compute_the_same(framework, photos, runs, tmp_path):
    if framework != "paddle":
        pytest.skip("ONNX from Paddle is for Paddle's interpreter")
    for package in ("paddle2onnx", "onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"ONNX from Paddle needs {package}: pip install {package}")
    _, images = shown_to(runs["linear"], sorted((photos / "val").rglob("*.png")))
    for kind, function in (("linear", triport.logits), ("mae", triport.embed)):
        found = triport.export(runs[kind], tmp_path / f"{kind}.onnx", backend="paddle")
        session = import_module("onnxruntime").InferenceSession(str(found.path), providers=["CPUExecutionProvider"])
        wanted = function(runs[kind], images, backend="paddle", device="cpu")
        (made,) = session.run([found.output], {"images": images})
        assert np.abs(made - wanted).max() <= 1e-5 * np.abs(wanted).max() and found.opset == 17


def test_an_export_that_is_there_names_its_own_option(runs, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="say --overwrite"):
        triport.export(runs["moco"], tmp_path / "there", "timm")
    assert not list((tmp_path / "there").iterdir())


def test_an_export_for_transformers_is_what_convert_writes(framework, runs, tmp_path):
    assert start.run(["export", str(runs["mae"]), str(tmp_path / "own"), "--to", "hf"]) == 0
    triport.convert(runs["mae"], tmp_path / "converted", to="hf")
    names = sorted(path.name for path in (tmp_path / "converted").iterdir())
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == names and "model.safetensors" in names
    own, converted = (load_file(tmp_path / name / "model.safetensors") for name in ("own", "converted"))
    assert own.keys() == converted.keys() and all(np.array_equal(own[name], converted[name]) for name in own)
