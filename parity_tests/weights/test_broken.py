"""Damaged and strange trees: a model, or one line that says why not, never anything else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triport.core.errors import UserError
from triport.parity_tests.fixtures.foreign import model_of
from triport.parity_tests.tool import small
from triport.weights.arrays import Lazy, lazy
from triport.weights.layouts.catalogue import BY_NAME, LAYOUTS
from triport.weights.model import facts
from triport.weights.model.detect import detect
from triport.weights.model.model import decode, encode, fit
from triport.weights.model.report import Report

KINDS = ("moco-vit", "moco-conv", "mae", "finetune-mean", "probe-mae")
STATES = {
    (kind, layout): encode(model, BY_NAME[layout], Report())
    for kind in KINDS
    for model in [model_of(small.MODELS[kind], {n: lazy(a) for n, a in small.arrays(small.MODELS[kind]).items()})]
    for layout in ("triport", "passl-moco", "passl-mae", "libai-mae", "hf-vit-mae", "mmpretrain-moco")
    if model.architecture.method in BY_NAME[layout].methods
    and (kind != "moco-conv" or layout in ("triport", "passl-moco"))
}
SIZES = st.sampled_from([0, 1, 2, 3, 7, 32, 96, 10**6, 2**40])
SHAPES = st.lists(SIZES, max_size=5).map(tuple)
NAMES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(sorted({name for state in STATES.values() for name in state})),
    st.lists(st.sampled_from(["blocks", "0", "999", "weight", "head", "module", "fc", "#", ""]), max_size=5).map(
        ".".join
    ),
)


def zeros(shape: tuple[int, ...]) -> Lazy:
    def load() -> np.ndarray:
        return np.broadcast_to(np.zeros((), np.float32), shape)

    return Lazy(shape, "float32", load)


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Any]:
    state = dict(STATES[draw(st.sampled_from(sorted(STATES)))])
    for name in draw(st.lists(st.sampled_from(sorted(state)), max_size=6)):
        state.pop(name, None)
    for name in draw(st.lists(st.sampled_from(sorted(state)), max_size=3)):
        state[name] = zeros(draw(SHAPES))
    for name in draw(st.lists(NAMES, max_size=4)):
        state[name] = zeros(draw(SHAPES))
    prefix = draw(st.sampled_from(["", "module.", "x."]))
    state = {prefix + name: array for name, array in state.items()}
    container = draw(st.sampled_from(["", "model", "state_dict"]))
    return {container: state} if container else state


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(tree=trees(), target=st.sampled_from(sorted(BY_NAME)), only=st.sampled_from(["all", "encoder", "momentum"]))
def test_broken_trees_end_in_one_line_or_in_a_model(tree: dict[str, Any], target: str, only: Any) -> None:
    report = Report()
    try:
        candidate = detect(tree, "torch")
        model = decode(candidate, report, only)
        model.heads, model.decoder_heads = 8, 4
        state = encode(fit(model, BY_NAME[target], report), BY_NAME[target], report)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
        return
    # every array of the file has exactly one fate
    fates = [s for c in report.carried for s in c.sources] + [n for n, _ in report.dropped] + report.unknown
    names = [candidate.state.full(name) for name in candidate.state.arrays]
    assert sorted(fates) == sorted(names)
    made = [c for c in report.carried if "made" in c.done]
    assert len(state) >= len(report.carried) - len(made)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(
    words=st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(("epoch", "arch", "args", "optimizer", "meta", "scaler"), JSON),
    ),
    noted=JSON,
)
def test_a_files_own_words_are_never_trusted_to_be_of_the_right_kind(
    tmp_path_factory: pytest.TempPathFactory, words: dict[str, Any], noted: Any
) -> None:
    import json

    folder = tmp_path_factory.mktemp("words")
    for name in ("config.json", "state.json"):
        (folder / name).write_text(json.dumps(noted))
    metadata = {"provenance": json.dumps({"heads": noted, "arch": noted, "licence": noted}), "recipe_toml": "x = ["}
    found = facts.read(words, metadata, folder / "a.pth")
    assert found.heads is None or (isinstance(found.heads, int) and not isinstance(found.heads, bool))
    assert found.epoch is None or found.epoch >= 0


def test_layouts_have_names_of_their_own() -> None:
    assert len(LAYOUTS) == len(BY_NAME)
