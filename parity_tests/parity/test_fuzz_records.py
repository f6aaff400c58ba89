"""Traces and goldens under mutated files: read, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from triport.core.errors import UserError
from triport.core.spec import recipe as recipes
from triport.parity_tests.fixtures.damage import INPUTS, limit, mutated
from triport.parity_tests.tool import cases, trace
from triport.parity_tests.tool.trace import Trace

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
MANY = settings(max_examples=INPUTS, deadline=None, suppress_health_check=list(HealthCheck))


def about() -> dict[str, object]:
    found = recipes.load("tiny/test_mae_vit")
    texts = {"backend": "torch", "version": "2", "recipe": recipes.to_toml(found), "name": found.name}
    texts |= {"precision": "float32", "images": "drawn"}
    return {"format": trace.FORMAT, **texts, "batch": 2, "steps": 1, "values": [], "calls": {}}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> bytes:
    """A small trace."""
    path = tmp_path_factory.mktemp("trace") / "x.safetensors"
    arrays = {"inputs/0/images": np.zeros((2, 1, 4, 4), np.float32), "step0/loss": np.float32(1).reshape(())}
    trace.write(path, Trace("x", about(), arrays))
    return path.read_bytes()


@pytest.fixture(scope="module")
def golden(tmp_path_factory) -> bytes:
    """A golden file of a model with few arrays."""
    shipped = cases.GOLDENS / "mae-mae_vit_base_patch16.safetensors"
    from safetensors import safe_open

    path = tmp_path_factory.mktemp("golden") / "mae-x.safetensors"
    with safe_open(shipped, framework="np") as file:
        names = list(file.keys())[:3]
        save_file({name: file.get_tensor(name) for name in names}, path, file.metadata())
    return path.read_bytes()


def taken(read: object, path: Path) -> None:
    """Read a file; only one line may come of it."""
    with limit():
        try:
            found = read(path)  # type: ignore[operator]
            if isinstance(found, Trace):
                assert found.recipe and found.precision
        except UserError as error:
            assert "\n" not in str(error) and str(error)


@MANY
@given(data=st.data())
def test_mutated_traces(recorded, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    path.write_bytes(data.draw(mutated(recorded)))
    taken(trace.read, path)


@MANY
@example(words={"precision": ""}, order=[])
@given(words=st.dictionaries(st.sampled_from(sorted(about())), JSON, max_size=3), order=JSON)
def test_traces_that_say_something_else(tmp_path_factory, words, order):
    path = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    text = {"about": json.dumps({**about(), **words}), "order": json.dumps(order)}
    save_file({"step0/loss": np.ones(1, np.float32)}, path, text)
    taken(trace.read, path)


@MANY
@given(data=st.data())
def test_mutated_goldens(golden, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "mae-x.safetensors"
    path.write_bytes(data.draw(mutated(golden)))
    taken(cases.read, path)


@MANY
@given(words=JSON | st.dictionaries(st.sampled_from(["case", "keys", "dtype", "model", "optimizer"]), JSON, max_size=4))
def test_goldens_that_say_something_else(tmp_path_factory, words):
    path = tmp_path_factory.mktemp("fuzz") / "mae-x.safetensors"
    save_file({"a": np.ones(1, np.float32)}, path, {"meta": json.dumps(words)})
    taken(cases.read, path)
