"""The demo: what it scores, kills, converts, draws and says; that it goes on where it was; all of it in small."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from triport import demo, environments
from triport.core.errors import UserError
from triport.core.record import checkpoint, export
from triport.core.spec import MonitorSpec, recipe
from triport.demo import console, moved, page, parts, passage, poster, resume, runs, scores
from triport.demo.result import Result
from triport.parity_tests.tool import bounds, small

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["--quick", "epochs=1", "warmup=0"]


# ---------------------------------------------------------------- fixtures
def shown(count: int = 4) -> moved.Shown:
    """Random pictures of three classes, `count` of each, for training and held out."""
    draw = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), count)
    pixels = draw.integers(0, 256, (3 * count, 28, 28, 1), np.uint8)
    tests = {change.name: moved.Pictures(moved.moved(pixels, change), labels) for change in moved.CHANGES}
    return moved.Shown(moved.Pictures(pixels, labels), tests, ["boot", "coat", "bag"])


def answered(pictures: moved.Shown) -> np.ndarray:
    """Features that know the class: of training pictures, then of those under every change."""
    labels = np.concatenate([pictures.train.labels, *(test.labels for test in pictures.tests.values())])
    return np.eye(3, dtype=np.float32)[labels] + np.float32(0.01)


def measured(pictures: moved.Shown) -> scores.Scores:
    """Scores of a network that knows everything and one that knows nothing."""
    trained = answered(pictures)
    return scores.measure(pictures, trained, np.ones_like(trained), MonitorSpec(knn_neighbours=3))


def found(**changes: Any) -> Result:
    """The result of a demo that went well, with changes."""
    same = resume.Resumed(36, 31, "ab" * 32, "ab" * 32)
    stops = [passage.Stop(*words, "cd" * 32) for words in passage.FILES]
    curves = {name: {step: 4.0 - step / 100 for step in range(1, 9)} for name in environments.FRAMEWORKS}
    well = Result(
        title="MoCo v3, a network",
        epochs=2,
        machine="2 CPU cores",
        minutes=3.25,
        tested=12,
        trained_on=12,
        neighbours=3,
        scores=measured(shown()),
        titles=["PyTorch", "Paddle", "OneFlow"],
        curves=curves,
        resumed=same,
        stops=stops,
        answers="answers.npz",
    )
    return replace(well, **changes)


def with_answers(folder: Path) -> Path:
    """A folder with the pictures that MAE made."""
    pictures = {name: shown().train.pixels[:3] for name in ("masked", "reconstruction", "pasted", "original")}
    np.savez(folder / "answers.npz", **pictures)  # type: ignore[arg-type]  # its stub takes the names for options
    return folder


# ---------------------------------------------------------------- the same picture, moved
@pytest.mark.parametrize("change", moved.CHANGES)
def test_every_picture_is_itself_at_another_place(change: moved.Change) -> None:
    pixels = np.random.default_rng(1).integers(1, 256, (40, 12, 10, 1), np.uint8)
    out = moved.moved(pixels, change)
    by, places = change.by, set()
    for image, result in zip(pixels, out):
        wide = np.pad(image, ((by, by), (by, by), (0, 0)))
        own = result[:, ::-1] if change.mirrored else result
        at = [
            (i, j) for i in range(2 * by + 1) for j in range(2 * by + 1) if (wide[i : i + 12, j : j + 10] == own).all()
        ]
        assert len(at) == 1
        places.update(at)
    assert len(places) > 10 or not by
    assert np.array_equal(out, moved.moved(pixels, change))  # the same for everybody


def test_the_pixels_are_a_baseline_that_can_be_beaten() -> None:
    chosen = recipe.load(demo.FULL.pretrain)
    pictures = moved.load(chosen)
    flat = pictures.train.flat()
    by_change = [
        scores.accuracy(pictures.train, test, flat, test.flat(), 10, chosen.monitor) for test in pictures.tests.values()
    ]
    assert 0.75 < by_change[0] < 0.85 and by_change[0] > by_change[1] + 0.05 > by_change[2] + 0.1


def test_scores_are_knn_of_each_and_the_neighbours_are_the_nearest() -> None:
    pictures = shown()
    result = measured(pictures)
    assert [score.trained for score in result.scores.values()] == [1.0, 1.0, 1.0]
    assert result.scores["unmoved"].pixels >= 1 / 3  # each is its own first neighbour
    rows, asked = pictures.train.flat().astype(np.float64), pictures.tests["mirrored"].flat().astype(np.float64)
    for query, label in zip(result.queries, range(3)):
        assert query.label == label and query.place == 4 * label
        one = asked[query.place]
        cosines = rows @ one / np.linalg.norm(rows, axis=1) / np.linalg.norm(one)
        assert query.pixels == np.argsort(-cosines, kind="stable")[: scores.NEAR].tolist()
        assert [int(pictures.train.labels[place]) for place in query.trained[:4]] == [label] * 4
    assert scores.from_plain(json.loads(json.dumps(result.plain()))) == result


# ---------------------------------------------------------------- verdict and console
def test_a_good_demo_says_what_was_won() -> None:
    result = found()
    assert result.good and not result.faults() and result.apart == 0.0
    assert "moved by up to 4 pixels and mirrored" in result.verdict() and "100.0 %" in result.verdict()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"must": 100.1}, "less than the 100.1 that it must"),
        ({"resumed": resume.Resumed(36, 31, "ab", "cd")}, "the resumed run differs"),
        ({"stops": [passage.Stop("PyTorch", "a", "mae", "1"), passage.Stop("Paddle", "b", "passl", "2")]}, "changed"),
    ],
)
def test_whatever_is_wrong_is_named_and_fails(changes: dict[str, Any], words: str) -> None:
    result = found(**changes)
    assert not result.good and words in result.verdict() and result.verdict().startswith("Something is wrong")


def test_the_terminal_has_80_columns(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    console.stage(1, 6, "MoCo v3, a network with a rather long name")
    console.say(found(missing=parts.missing(["torch"])).verdict())
    print(console.bars(measured(shown())))
    print(console.losses(found().curves))
    console.conclude(found(), Path("runs/demo/index.html"), Path("runs/demo/demo.png"), Path("runs/demo/torch"))
    message = capsys.readouterr().out
    assert max(map(len, message.splitlines())) <= 80
    assert "trained     100.0 %" in message and "All of it took 3.2 minutes" in message


def test_every_command_it_proposes_is_one() -> None:
    from triport.command import COMMANDS

    words = console.NEXT.format(run="runs/demo/torch").split()
    after = [words[i + 1] for i, word in enumerate(words) if word == "triport"]
    assert len(after) >= 7 and set(after) <= set(COMMANDS)
    named = {word for word in words if re.fullmatch(r"(tiny|photos|moco_v3)/\w+", word)}
    assert named and named <= set(recipe.names())


def test_what_is_not_set_up_is_reported_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "interpreter", lambda name: Path("python") if name == "torch" else None)
    assert demo.here() == ["torch"]
    assert parts.missing(["torch"]) == "WITHOUT PADDLE AND ONEFLOW, not set up here (triport setup paddle oneflow)."
    monkeypatch.setattr(environments, "interpreter", lambda name: Path("python"))
    assert parts.missing(["torch"]) == ""  # not asked for


# ---------------------------------------------------------------- page and poster
def test_the_page_holds_all_of_it_and_needs_no_other_file(tmp_path: Path) -> None:
    path = page.write(found(), shown(), with_answers(tmp_path) / "index.html")
    text = path.read_text()
    assert text.count('class="row"') == 2 * 3 + 3 and "boot; near: " in text
    assert "By the network: 12 of 18 fit" in text  # four of six: there are four of a class
    assert "abababab" in text and "cdcdcdcd" in text and "NOT EQUAL" not in text
    assert text.count("<svg") == 1 and "PyTorch, Paddle and OneFlow" in text
    assert not re.search(r'(src|href)="(?!data:image/png|frameworks\.html|#)', text) and "http" not in text
    assert "NOT EQUAL" in page.render(found(resumed=resume.Resumed(1, 0, "a", "b")), shown(), tmp_path)


def test_the_page_of_one_framework_says_what_is_missing(tmp_path: Path) -> None:
    alone = found(curves={"torch": {1: 4.0}}, titles=["PyTorch"], missing="WITHOUT PADDLE.")
    text = page.render(alone, shown(), with_answers(tmp_path))
    assert "WITHOUT PADDLE." in text and "<svg" not in text


def test_the_poster_is_a_small_picture(tmp_path: Path) -> None:
    path = poster.write(found(), shown(), with_answers(tmp_path) / "demo.png")
    with Image.open(path) as picture:
        assert picture.size == poster.SIZE and picture.format == "PNG"
        colours = {tuple(colour) for colour in np.asarray(picture.convert("RGB")).reshape(-1, 3)[::7].tolist()}
    assert path.stat().st_size < 200_000 and len(colours) > 20
    poster.write(found(curves={"torch": {1: 4.0, 2: 3.0}}, titles=["PyTorch"]), shown(), tmp_path / "demo.png")


def test_the_poster_of_the_readme_is_small() -> None:
    path = ROOT / "docs" / "demo.png"
    assert path.stat().st_size < 200_000 and "docs/demo.png" in (ROOT / "README.md").read_text()


# ---------------------------------------------------------------- its runs
def test_a_demo_goes_where_its_settings_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "FOLDER", tmp_path / "demo")
    mine, other = {"quick": True}, {"quick": False}
    assert demo.place(None, mine) == tmp_path / "demo" and demo.place(tmp_path / "own", mine) == tmp_path / "own"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / parts.STATE).write_text(json.dumps({"settings": mine}))
    assert demo.place(None, mine) == tmp_path / "demo"  # to go on, or to show it again
    assert demo.place(None, other) == tmp_path / "demo-2"
    with pytest.raises(UserError, match="holds a demo with other settings"):
        demo.place(tmp_path / "demo", other)


def test_a_finished_run_of_other_settings_is_neither_taken_nor_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, changes = demo.QUICK.pretrain, ["epochs=1"]
    (tmp_path / runs.ENCODER).touch()
    (tmp_path / "recipe.toml").write_text(recipe.to_toml(recipe.load(name, changes)))
    runs.pretrain(tmp_path, name, "torch", changes)  # taken as it is
    assert "finished already" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds a run with other settings"):
        runs.pretrain(tmp_path, name, "torch", [])
    assert (tmp_path / runs.ENCODER).exists()


def test_half_a_line_of_a_run_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    assert runs.last_step(tmp_path) == 0
    lines = [json.dumps({"kind": "step", "step": step, "epoch": step / 10, "loss": 4.0}) for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"kind": "step", "st')
    assert runs.losses(tmp_path) == {1: 4.0, 2: 4.0} and runs.last_step(tmp_path) == 2


def test_a_digest_sees_every_bit(tmp_path: Path) -> None:
    arrays = {"a": np.arange(4, dtype=np.float32)}
    digests = []
    for at, value in enumerate((0.0, 0.0, np.finfo(np.float32).tiny)):
        own = {"model": {"a": arrays["a"] + np.float32(value)}, "optimizer": {"m/a": np.array([value], np.float32)}}
        checkpoint.save(tmp_path / str(at) / "checkpoints" / "last", own, {"step": 1})
        digests.append(resume.digest(tmp_path / str(at)))
    assert digests[0] == digests[1] != digests[2]


def test_an_encoder_comes_back_from_the_frameworks_files(tmp_path: Path) -> None:
    mae = recipe.load(demo.QUICK.mae)
    export.write_encoder(tmp_path / "encoder.safetensors", mae, small.arrays(mae.model))
    stops = passage.prove(tmp_path / "encoder.safetensors", tmp_path / "files")
    assert passage.equal(stops) and [stop.framework for stop in stops] == ["PyTorch", "Paddle", "OneFlow", "PyTorch"]
    assert (tmp_path / "files" / "encoder_oneflow").is_dir()
    changed = {name: array.copy() for name, array in small.arrays(mae.model).items()}
    changed["cls_token"].reshape(-1)[0] += 1e-6
    export.write_encoder(tmp_path / "other.safetensors", mae, changed)
    assert passage.digest(tmp_path / "other.safetensors") != stops[0].digest


def test_a_run_that_fails_before_it_is_killed_is_reported_of(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ended with exit code 2 before it was killed"):
        resume.kill(["pretrain", "no/such_recipe"], tmp_path, 5)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot tie a process to its parent")
def test_a_run_ends_with_the_demo_however_that_ends(tmp_path: Path) -> None:
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(3600)"
    parent = (
        "import sys; from triport.demo import runs; "
        f"runs.command = lambda words: [sys.executable, '-c', {child!r}]; runs.triport([])"
    )
    demo = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    assert int(demo.stdout.readline()) != demo.pid
    demo.kill()
    assert demo.stdout.read() == ""  # which comes when the child too has ended
    demo.wait()


def test_one_framework_shows_the_losses_of_its_own_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = json.dumps({"kind": "step", "step": 1, "epoch": 0.1, "loss": 4.0})
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "metrics.jsonl").write_text(line + "\n")
    alone = parts.Demo(tmp_path, {"frameworks": ["torch"]}, demo.QUICK, ())
    assert alone.beside("") == {"torch": {1: 4.0}} == alone.beside("WITHOUT PADDLE.")
    assert capsys.readouterr().out.split("\n")[:2] == ["No other framework was asked for.", "WITHOUT PADDLE."]
    assert not (tmp_path / "frameworks").exists()


# ---------------------------------------------------------------- all of it
@dataclass(frozen=True)
class Finished:
    """A demo that has come to its end: its folder, on what it ran and what it printed."""

    out: Path
    frameworks: list[str]
    printed: str


def started(frameworks: list[str], out: Path) -> subprocess.CompletedProcess[str]:
    """Run the demo in small."""
    words = ["--backend", ",".join(frameworks), "--out", str(out), *QUICK]
    command = [sys.executable, "-m", "triport", "demo", *words]
    return subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=1800)


@pytest.fixture(scope="module")
def small_demo(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A demo on every framework that is set up here, run once for the tests that look at it."""
    out, frameworks = tmp_path_factory.mktemp("demo") / "demo", demo.here()
    done = started(frameworks, out)
    assert done.returncode == 0, done.stderr
    return Finished(out, frameworks, done.stdout)


@pytest.mark.framework("torch")
def test_a_run_is_killed_and_goes_on_to_the_same_bits(small_demo: Finished) -> None:
    result = resume.Resumed(**parts.read_state(small_demo.out)["resumed"])
    assert result.equal and len(result.resumed) == 64
    folders = [small_demo.out / "killed" / name for name in ("killed", "undisturbed")]
    assert [resume.digest(folder) for folder in folders] == [result.resumed, result.undisturbed]
    assert 0 < result.resumed_at <= result.killed_at < runs.last_step(folders[0])
    assert "SIGKILL" in small_demo.printed and "equal to the bit" in small_demo.printed
    assert runs.losses(folders[0]) == runs.losses(folders[1])


@pytest.mark.framework("paddle")
@pytest.mark.framework("oneflow")
def test_three_frameworks_on_one_page(small_demo: Finished) -> None:
    out = small_demo.out
    curves = [runs.losses(out / "frameworks" / name) for name in environments.FRAMEWORKS]
    for other in curves:
        assert len(other) == demo.QUICK.steps
        bounds.hold("training", abs(other[1] - curves[0][1]) / curves[0][1], "first loss of the demo")
        assert all(abs(other[step] - curves[0][step]) < 0.02 * curves[0][step] for step in other)  # one line to the eye
    assert "torch, paddle and oneflow" in (out / "frameworks.html").read_text()
    text = (out / "index.html").read_text()
    assert "PyTorch, Paddle and OneFlow" in text and text.count("<svg") == 1


@pytest.mark.framework("torch")
def test_the_whole_of_it_small_and_again(small_demo: Finished) -> None:
    """Last: it goes on in the folder that the others look at."""
    out, others = small_demo.out, len(small_demo.frameworks) - 1
    for words in ("raw pixels", "untrained", "1/6", "6/6", "SIGKILL", "equal to the bit", "index.html"):
        assert words in small_demo.printed, small_demo.printed
    curve = runs.curve(out / "torch")
    assert set(curve) == {0, 1} and np.all(np.fromiter(curve.values(), float) > 0.3)
    state = parts.read_state(out)
    assert state["scores"]["scores"]["unmoved"]["pixels"] > 0.75
    assert (out / "index.html").read_text().count('class="row"') == 2 * 10 + 3
    again = started(small_demo.frameworks, out)
    finished = 2 + (others and 1 + others)  # both trainings, and the first steps on each of several frameworks
    assert again.returncode == 0 and again.stdout.count("finished already") == finished, again.stdout
    assert again.stdout.count("done already") == 2 and "step" not in again.stdout.partition("3/6")[0]
    assert parts.read_state(out)["scores"] == state["scores"]
    (out / "torch" / runs.ENCODER).unlink()  # as if it had been interrupted
    assert "going on with the run in" in started(small_demo.frameworks, out).stdout
    assert runs.curve(out / "torch") == curve
