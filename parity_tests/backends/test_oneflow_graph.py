"""Steps compiled by OneFlow's nn.Graph: the numbers of eager ones, and one-line refusals of what it cannot do."""

from __future__ import annotations

import gc
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from triport.core.backend.probe import recipe_around
from triport.core.errors import UserError
from triport.core.model.schedule import Values
from triport.core.spec import OptimizerSpec
from triport.parity_tests.tool import small
from triport.parity_tests.tool.questions import batch

if find_spec("oneflow") is None:  # not importorskip: OneFlow is prepared for before it is imported
    pytest.skip("OneFlow is not in this interpreter: run this in .venvs/oneflow", allow_module_level=True)

from triport.backends.oneflow import distributed, graph, learner

pytestmark = pytest.mark.inside

ADAMW = OptimizerSpec(kind="adamw", lr=1.0, weight_decay=0.1, decays="all", average=0.9, clip_norm=0.5)
STEPS = (Values(0.02, 0.9), Values(0.01, 0.95), Values(0.005, 0.99))


def made(name, precision="float64", **more):
    spec = small.MODELS[name]
    return learner.Learner(
        recipe_around(spec, ADAMW), small.arrays(spec), distributed.start("cpu"), precision=precision, **more
    )


def pair(name, precision="float64"):
    return made(name, precision), made(name, precision, compile=True)


def data(name, n=6):
    return batch(small.inputs(small.MODELS[name], n=n))


def apart(one, other):
    assert one.keys() == other.keys()
    return max(float(np.max(np.abs(a - other[n]), initial=0)) for n, a in one.items())


MODELS = ["mae", "finetune-token", "finetune-mean", "probe-vit", "probe-mae", "moco-vit", "moco-conv", "moco-resnet18",
          "probe-resnet18"]  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_compiled_step_is_the_eager_one(name):
    """Also of micro-batches of two sizes, and with an evaluation of averaged weights in between."""
    plain, compiled = pair(name)
    given = [data(name), data(name), data(name, n=4)]
    before, limit = compiled.arrays(), 1e-7 if "resnet" in name else 1e-9
    for number, values in enumerate(STEPS):
        one, other = (made.step(given, values) for made in (plain, compiled))
        # AdamW makes much of the last bits of a gradient that should be 0, of a bias before a batch norm
        assert other.loss == pytest.approx(one.loss, rel=1e-9 if number else 1e-12)
        assert other.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-9)
        assert other.extras == pytest.approx(one.extras, rel=1e-9)
        images = data(name).images[0]
        assert np.abs(plain.embed(images) - compiled.embed(images)).max() < limit
        if "probe" in name or "finetune" in name:
            assert np.abs(plain.predict(images) - compiled.predict(images)).max() < 1e-9
    assert len(compiled.compiled.steps) == 2  # one for each size
    assert apart(plain.arrays(), compiled.arrays()) < limit < 1e-3 < apart(before, compiled.arrays())
    assert apart(plain.optimizer_arrays(), compiled.optimizer_arrays()) < limit


def test_a_compiled_step_in_float32():
    plain, compiled = pair("mae", "float32")
    one, other = (made.step([data("mae")], STEPS[0]) for made in (plain, compiled))
    assert other.loss == pytest.approx(one.loss, rel=2e-6)
    assert other.gradient_norm == pytest.approx(one.gradient_norm, rel=2e-6)


def test_a_scaled_loss_is_scaled_in_the_graph():
    plain, compiled = pair("mae")
    compiled.scaled = True
    one, other = (made.step([data("mae")], STEPS[0]) for made in (plain, compiled))
    assert other.extras["loss_scale"] == compiled.scale
    assert other.loss == pytest.approx(one.loss, rel=1e-12)
    assert other.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-10)
    assert apart(plain.arrays(), compiled.arrays()) < 1e-9


def test_a_step_that_is_not_finite_changes_nothing_and_the_next_one_is_as_ever():
    plain, compiled = pair("mae")
    given = data("mae")
    broken = replace(given, images=tuple(view * np.nan for view in given.images))
    before = compiled.arrays()
    assert compiled.step([broken], STEPS[0]).bad == "loss"
    assert apart(before, compiled.arrays()) == 0
    assert compiled.step([given], STEPS[0]).loss == pytest.approx(plain.step([given], STEPS[0]).loss, rel=1e-12)
    assert apart(plain.arrays(), compiled.arrays()) < 1e-9


def losses(name):
    alone = made(name)
    return [alone.step([data(name)], values).loss for values in STEPS]


@pytest.mark.parametrize("kept", [True, False])
def test_eager_steps_after_compiled_ones_are_as_before(kept):
    """While a graph is there and after it has gone."""
    names = ("moco-vit", "moco-conv", "mae", "finetune-token")
    before = {name: losses(name) for name in names}
    compiled = [made(name, compile=True) for name in names]
    for each, name in zip(compiled, names):
        for values in STEPS:
            each.step([data(name)], values)
    if not kept:
        del each, compiled
        gc.collect()
    for _ in range(2):
        for name in names:
            assert losses(name) == pytest.approx(before[name], rel=1e-12)


def test_half_precision_is_the_graphs_own():
    """What this machine can see of it: there are no half-precision kernels on a CPU."""
    built = made("mae")
    halves = graph.compiled(built.model, built.of_model, built.trained, "bfloat16", 1)
    half, plain = (graph._Step(of, ("images",)).config.proto for of in (halves, made("mae", compile=True).compiled))
    assert half.enable_auto_mixed_precision and not plain.enable_auto_mixed_precision
    assert half.mixed_precision_data_type != plain.mixed_precision_data_type


def test_a_checkpoint_that_is_loaded_after_a_step_counts():
    plain, compiled = pair("mae")
    given = data("mae")
    start, state = compiled.arrays(), compiled.optimizer_arrays()
    for values in STEPS:
        compiled.step([given], values)
        noise = given.mask_noise
        compiled.reconstruct(given.images[0], noise)
    compiled.load(start, state)
    assert apart(start, compiled.arrays()) == 0
    one, other = (made.step([given], STEPS[0]) for made in (plain, compiled))
    assert other.loss == pytest.approx(one.loss, rel=1e-12)
    assert apart(plain.arrays(), compiled.arrays()) < 1e-9


def test_the_user_is_told_once_why_the_first_step_takes_long(capfd):
    compiled = made("mae", compile=True)
    for n in (6, 6, 4):
        compiled.step([data("mae", n=n)], STEPS[0])
    assert capfd.readouterr().err.count(graph.BEGINS) == 1


def test_several_processes_are_refused_in_a_line():
    built = made("mae")
    with pytest.raises(UserError, match=r"one process.*leave out --compile, or --processes"):
        graph.compiled(built.model, built.of_model, built.trained, "float32", 2)
