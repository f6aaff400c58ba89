"""Recording somebody's own step: `with recording(model, file)` in each framework, and what is refused."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from triport import parity
from triport.core.errors import UserError
from triport.parity_tests.tool.foreign import comparing, files, formulas, frameworks, kinds, record, steps


@pytest.fixture(scope="module")
def library(probe):
    """The framework of this interpreter."""
    return import_module(probe.__name__.split(".")[2])


def module_base(library):
    return library.nn.Layer if library.__name__ == "paddle" else library.nn.Module


@pytest.fixture
def model(library):
    """A small network with a batch norm and a module that is called twice."""
    nn, paddle = library.nn, library.__name__ == "paddle"

    class Twice(module_base(library)):  # type: ignore[misc]
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 4)
            self.norm = (nn.BatchNorm1D if paddle else nn.BatchNorm1d)(4)
            self.act = nn.ReLU()
            self.last = nn.Linear(4, 4)

        def forward(self, x):
            x = self.act(self.norm(self.first(x)))
            return self.last(self.act(self.last(x)))

    made = Twice()
    return made.to(dtype="float64") or made if paddle else made.double()


def images(library, rows=5):
    array = np.random.Generator(np.random.Philox(3)).standard_normal((rows, 3))
    return library.to_tensor(array) if library.__name__ == "paddle" else library.tensor(array)


def sgd(library, model):
    if library.__name__ == "paddle":
        return library.optimizer.SGD(0.1, parameters=model.parameters())
    return library.optim.SGD(model.parameters(), lr=0.1)


def train(library, model, path, count=2):
    optimizer, batch = sgd(library, model), images(library)
    with parity.recording(model, path) as saved:
        for _ in range(count):
            loss = (model(batch) ** 2).mean()
            loss.backward()
            optimizer.step()
            saved.step(loss)
            optimizer.clear_grad() if library.__name__ == "paddle" else optimizer.zero_grad()
    return files.read(path)


def hooks(model):
    """How many hooks the modules hold."""
    tables = ("_forward_hooks", "_forward_pre_hooks", "_forward_post_hooks")
    modules = [model, *(module for _, module in frameworks.of(model).modules(model))]
    return sum(len(getattr(module, table, ())) for module in modules for table in tables)


def test_outputs_gradients_and_steps_are_recorded(library, model, tmp_path):
    start = frameworks.of(model).array(model.first.weight)
    found = train(library, model, tmp_path / "a.safetensors")
    arrays = load_file(tmp_path / "a.safetensors")  # numpy alone reads it
    assert found.steps == 2 and found.about["backend"] == library.__name__ and found.about["precision"] == "float64"
    weight, bias = (arrays[f"first/first.{name}"] for name in ("weight", "bias"))
    assert weight.shape == (4, 3)  # (out, in) on every framework
    np.testing.assert_array_equal(weight, start.T if library.__name__ == "paddle" else start)
    x = images(library).numpy()
    np.testing.assert_allclose(arrays["in/first"], x, atol=0)
    np.testing.assert_allclose(arrays["out/first"], x @ weight.T + bias, atol=1e-14)
    assert found.about["inputs"]["norm"] == "out/first" and "out/last@2" in arrays and "out/act@2" in arrays
    np.testing.assert_allclose(arrays["step0/grad/first.weight"], arrays["grad/first"].T @ x, atol=1e-14)
    moved = arrays["step0/after/first.weight"] - weight
    np.testing.assert_allclose(moved, -0.1 * arrays["step0/grad/first.weight"], atol=1e-8)
    assert arrays["step1/loss"] < arrays["step0/loss"]
    assert "step1/after/norm.running_var" in arrays and found.modules["norm"]["settings"]["momentum"] == 0.1


def test_a_record_agrees_with_itself_and_with_its_formulas(library, model, tmp_path):
    found = train(library, model, tmp_path / "a.safetensors")
    result = comparing.compare(found, found)
    assert result.first is None and len(result.lines) > 30


def test_hooks_go_after_the_block_and_after_an_exception(library, model, tmp_path):
    before = hooks(model)
    train(library, model, tmp_path / "a.safetensors", count=1)
    assert hooks(model) == before
    with pytest.raises(RuntimeError, match="out of memory"), parity.recording(model, tmp_path / "b.safetensors"):
        model(images(library))
        assert hooks(model) > before
        raise RuntimeError("out of memory")
    assert hooks(model) == before and not (tmp_path / "b.safetensors").exists()


def test_a_block_without_steps_is_one_step(library, model, tmp_path):
    with parity.recording(model, tmp_path / "a.safetensors"):
        (model(images(library)) ** 2).mean().backward()
    found = files.read(tmp_path / "a.safetensors")
    assert found.steps == 1 and "step0/grad/last.weight" in found.arrays and "step0/loss" not in found.arrays


def test_norms_can_have_their_eps_as_float32_has_it(library, model, tmp_path):
    given = train(library, model, tmp_path / "a.safetensors", count=1)
    parity.round_eps(model)
    rounded = train(library, model, tmp_path / "b.safetensors", count=1)
    assert [record.about["eps"] for record in (given, rounded)] == ["as given", "float32"]
    assert given.modules == rounded.modules and given.modules["norm"]["settings"]["eps"] == 1e-5
    (eps,) = kinds.eps_of(model.norm).values()
    assert eps == float(np.float32(1e-5)) != 1e-5
    missed = formulas.missed(rounded, "norm")
    assert missed is not None and missed < 1e-14
    assert any("triport.parity.round_eps" in note for note in comparing.compare(given, rounded).notes)


def test_weights_are_carried_into_another_model(library, model, tmp_path):
    found = train(library, model, tmp_path / "a.safetensors", count=1)
    assert "first.weight" in parity.copy_weights(model, tmp_path / "a.safetensors")
    saved = frameworks.of(model).array(model.first.weight)
    wanted = found.arrays["first/first.weight"]
    np.testing.assert_array_equal(saved, wanted.T if library.__name__ == "paddle" else wanted)


def test_weights_that_have_no_place_are_refused(library, model, tmp_path):
    train(library, model, tmp_path / "a.safetensors", count=1)
    with pytest.raises(UserError, match=r"no array 'weight' in the record; --names"):
        parity.copy_weights(library.nn.Linear(3, 4), tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"has '\S+' and \d+ more, for which Linear has no place"):
        parity.copy_weights(library.nn.Linear(3, 4), tmp_path / "a.safetensors", parity.Names({"first": ""}))
    with pytest.raises(UserError, match=r"'weight' has shape \(\d, \d\) in the record and"):
        parity.copy_weights(library.nn.Linear(4, 5), tmp_path / "a.safetensors", parity.Names({"first": ""}))


def test_what_was_not_called_is_refused(library, model, tmp_path):
    with (
        pytest.raises(UserError, match="the model was not called"),
        parity.recording(model, tmp_path / "a.safetensors"),
    ):
        pass
    assert hooks(model) == 0


def test_the_settings_of_a_class_mean_the_same_on_each_framework(library):
    nn, paddle = library.nn, library.__name__ == "paddle"
    conv = (nn.Conv2D if paddle else nn.Conv2d)(3, 4, 3, stride=2, padding=1)
    norm = nn.BatchNorm2D(4, momentum=0.8) if paddle else nn.BatchNorm2d(4, momentum=0.2)
    assert kinds.describe(conv)["settings"] == {
        "stride": 2, "padding": 1, "dilation": 1, "groups": 1, "padding mode": "zeros",
    }  # fmt: skip
    assert kinds.describe(norm)["settings"] == {"eps": 1e-5, "momentum": 0.2}
    layer_norm = nn.LayerNorm(4, epsilon=1e-6) if paddle else nn.LayerNorm(4, eps=1e-6)
    assert kinds.describe(layer_norm)["settings"] == {"eps": 1e-6, "axes": 1}
    assert kinds.describe(nn.GELU())["settings"] == {"tanh": False}
    own = type("Own", (type(conv),), {"forward": lambda self, x: x})(3, 4, 3)
    assert kinds.describe(conv)["exact"] and not kinds.describe(own)["exact"]


# ---------------------------------------------------------------- the command, without a framework
def test_what_is_not_a_module_is_refused(tmp_path):
    with pytest.raises(UserError, match="dict is not a module of a framework"), parity.recording({}, tmp_path / "a"):
        pass


def test_batches_are_read_step_by_step(tmp_path):
    arrays: dict[str, Any] = {"step0/x": np.zeros(2, np.float32), "step1/x": np.ones(2), "about": np.array("{}")}
    np.savez(tmp_path / "a.npz", **arrays)
    assert [steps.batch(tmp_path / "a.npz", i, "float64")["x"][0] for i in range(3)] == [0, 1, 0]
    np.savez(tmp_path / "b.npz", labels=np.arange(3, dtype=np.int32))
    assert steps.batch(tmp_path / "b.npz", 5, "float32")["labels"].dtype == np.int64
    np.savez(tmp_path / "c.npz", about=np.array("text"))
    with pytest.raises(UserError, match="holds no array of numbers"):
        steps.batch(tmp_path / "c.npz", 0, "float32")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "m:build", "--inputs", "no.npz", "--backend", "torch", "-o", "a"], "no file no.npz"),
        (["--model", "m:build", "--inputs", "b.npz", "--backend", "jax", "-o", "a"], "no framework 'jax'"),
        (
            ["--model", "m:build", "--inputs", "b.npz", "--backend", "torch", "--python", "no", "-o", "a"],
            "no interpreter",
        ),
        (["--model", "m:build", "--backend", "torch", "-o", "a"], "--inputs"),
    ],
)
def test_a_wrong_command_is_one_line(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    np.savez("b.npz", x=np.zeros(3))
    with pytest.raises(UserError, match=message):
        record.main(words)


def test_models_that_cannot_be_found_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("build = 3\n")
    wrong = {
        "mine": "write MODULE:NAME",
        "absent:build": "cannot import absent",
        "mine:made": "no 'made'",
        "absent.py:build": "cannot import absent.py",
    }
    for name, message in wrong.items():
        with pytest.raises(UserError, match=message):
            record.loaded(name)
    assert record.loaded("mine:build") == 3 and record.loaded("mine.py:build") == 3


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text.safetensors").write_text(json.dumps({}))
    with pytest.raises(UserError, match="cannot read the record"):
        files.read(tmp_path / "text.safetensors")
    with pytest.raises(UserError, match="is not a record: move it aside"):
        files.write(tmp_path / "text.safetensors", {"format": files.FORMAT}, {})
    assert (tmp_path / "text.safetensors").read_text() == "{}"
    save_file({"x": np.zeros(1)}, tmp_path / "trace.safetensors", {"about": json.dumps({"format": 2, "recipe": ""})})
    with pytest.raises(UserError, match="is of a recipe: compare it with another of that recipe"):
        files.read(tmp_path / "trace.safetensors")
    assert not files.is_record(tmp_path / "text.safetensors") and not files.is_record(tmp_path / "absent")
