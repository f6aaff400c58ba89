"""The learner of each framework here: what is frozen, what is refused, what a failure leaves behind; float64."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
from safetensors.numpy import load_file

from triport.core.augment import pixels
from triport.core.backend.probe import recipe_around
from triport.core.backend.recorder import recording
from triport.core.backend.scaled import ScaledLearner
from triport.core.errors import UserError
from triport.core.model.inventory import inventory
from triport.core.model.schedule import Values
from triport.core.record import checkpoint
from triport.core.spec import OptimizerSpec
from triport.parity_tests.fixtures import toy
from triport.parity_tests.reference import objectives
from triport.parity_tests.reference import optimizers as formulas
from triport.parity_tests.tool import small
from triport.parity_tests.tool.bounds import hold
from triport.parity_tests.tool.questions import Remote, batch, distance, parts, training

PLAIN = OptimizerSpec(kind="sgd", lr=0.1, weight_decay=0.0, decays="all", momentum=0.0)
EXACT = ("moco-vit", "moco-conv", "mae", "probe-mae", "finetune-mean")


@pytest.fixture(scope="session")
def framework(probe):
    return probe.__name__.split(".")[2]


def part(framework, name):
    return import_module(f"triport.backends.{framework}.{name}")


def learner(framework, name, optimizer=PLAIN, **more):
    spec = small.MODELS[name]
    start, kind = part(framework, "distributed").start, part(framework, "learner").Learner
    return kind(recipe_around(spec, optimizer), small.arrays(spec), start("cpu"), **more)


# ---------------------------------------------------------------- models and learners
def test_a_model_made_by_hand_has_a_frozen_momentum_encoder(framework):
    spec = small.MODELS["moco-vit"]
    model = part(framework, "moco").MoCoV3(spec.encoder, spec.objective)

    def trains(parameter):
        return not parameter.stop_gradient if framework == "paddle" else parameter.requires_grad

    assert not any(trains(p) for p in model.momentum_encoder.parameters())
    assert all(trains(p) for p in model.predictor.parameters())


def test_a_recording_leaves_nothing_in_the_model(framework):
    made, inputs = learner(framework, "moco-vit"), small.inputs(small.MODELS["moco-vit"])
    wrong = batch({**inputs, "view2": inputs["view2"][:, :, :-1]})
    with pytest.raises(Exception, match=r"."), recording(made.model, made.tensors) as seen:
        made.step([wrong], Values(0.1, 0.9))
    assert "forward" not in vars(made.model.predictor) and not seen
    after = len(seen)
    made.step([batch(inputs)], Values(0.1, 0.9))
    assert len(seen) == after


def test_what_a_recording_holds_is_not_changed_in_place_later(framework):
    model = small.MODELS["moco-resnet18"]
    one, other, inputs = learner(framework, "moco-resnet18"), learner(framework, "moco-resnet18"), small.inputs(model)
    with recording(one.model, one.tensors) as seen:
        recorded = one.step([batch(inputs)], Values(0.1, 0.9))
    assert recorded.loss == other.step([batch(inputs)], Values(0.1, 0.9)).loss
    norms = {n: a for n, a in one.tensors.arrays(seen).items() if re.search(r"encoder.*bn\d(@2)?$", n)}
    assert len(norms) > 8 and all(array.min() < 0 for array in norms.values())  # none is rectified


def test_nothing_is_updated_where_a_gradient_is_not_finite(framework):
    optimizer = replace(PLAIN, average=0.5)
    made, inputs = learner(framework, "finetune-mean", optimizer), small.inputs(small.MODELS["finetune-mean"])
    arrays = made.arrays()
    broken = {**arrays, "head.weight": np.full_like(arrays["head.weight"], np.inf)}
    made.load(broken, None)
    result = made.step([batch(inputs)], Values(0.1, 0.0))
    assert result.bad == "loss" and not np.isfinite(result.loss)
    assert all(np.array_equal(a, broken[n]) for n, a in made.arrays().items())
    assert int(made.optimizer_arrays()["step"]) == 0


def test_predictions_are_those_of_the_averaged_weights(framework):
    made = learner(framework, "finetune-mean", replace(PLAIN, average=0.5))
    inputs = small.inputs(small.MODELS["finetune-mean"])
    before = made.predict(inputs["images"])
    made.step([batch(inputs)], Values(0.5, 0.0))
    arrays, state = made.arrays(), made.optimizer_arrays()
    averaged = {n: state.get(f"average/{n}", a) for n, a in arrays.items()}
    other = learner(framework, "finetune-mean")
    other.load(averaged, None)
    assert distance(made.predict(inputs["images"]), other.predict(inputs["images"])) < 1e-6
    assert distance(made.predict(inputs["images"]), before) > 1e-3
    assert all(np.array_equal(a, arrays[n]) for n, a in made.arrays().items())


def test_a_state_of_another_shape_or_without_averages_is_refused(framework):
    optimizer = OptimizerSpec(
        kind="adamw", lr=0.1, weight_decay=0.0, decays="all", betas=(0.9, 0.999), eps=1e-8, average=0.5
    )
    made = learner(framework, "finetune-mean", optimizer)
    arrays, state = made.arrays(), made.optimizer_arrays()
    row = state["exp_avg/head.weight"][:1]
    with pytest.raises(UserError, match=r"'exp_avg/head\.weight' has shape \(1, \d+\), which does not fit the model"):
        made.load(arrays, {**state, "exp_avg/head.weight": row})
    with pytest.raises(UserError, match=r"lacks 'average/\S+', and the recipe averages weights"):
        made.load(arrays, {name: a for name, a in state.items() if not name.startswith("average/")})
    made.load(arrays, state)


def test_labels_out_of_range_are_refused(framework):
    made, inputs = learner(framework, "finetune-mean"), small.inputs(small.MODELS["finetune-mean"])
    with pytest.raises(UserError, match="labels from 99 to 99 do not fit"):
        made.step([batch({**inputs, "labels": np.full(len(inputs["labels"]), 99)})], Values(0.1, 0.0))


def test_the_spread_of_a_step_is_that_of_its_predictions(framework):
    made, inputs = learner(framework, "moco-vit"), small.inputs(small.MODELS["moco-vit"])
    result = made.step([batch(inputs)], Values(0.1, 0.9))
    rows = made.tensors.to_host(made.outputs["q1"]).astype(np.float64)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert result.extras["spread"] == pytest.approx(unit.std(axis=0).mean() * rows.shape[1] ** 0.5, rel=1e-5)


# ---------------------------------------------------------------- bytes
@pytest.mark.parametrize("name", ["mae", "moco-vit"])
def test_a_step_on_bytes_is_the_step_on_floats(framework, name):
    draw, (mean, std) = np.random.default_rng(0), ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    inputs = small.inputs(small.MODELS[name])
    plain = batch(inputs)
    raw = tuple(np.moveaxis(draw.integers(0, 256, view.shape, np.uint8), 1, -1) for view in plain.images)
    floats = replace(plain, images=tuple(pixels.normalise(view, mean, std) for view in raw))
    given = replace(plain, images=raw, table=pixels.table(mean, std, 3).copy())
    one, other = learner(framework, name), learner(framework, name)
    for view, image in zip(raw, floats.images):
        assert np.array_equal(one.tensors.to_host(one.tensors.from_bytes(view, given.table)), image)
    assert one.step([floats], Values(0.1, 0.9)).loss == other.step([given], Values(0.1, 0.9)).loss
    assert all(np.array_equal(a, other.arrays()[n]) for n, a in one.arrays().items())


# ---------------------------------------------------------------- half precision and options of another backend
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_on_a_cpu_is_refused_where_there_is_none(framework, precision):
    if framework == "torch":
        assert learner(framework, "mae", precision=precision).precision == precision
    else:
        with pytest.raises(UserError, match=rf"no {precision} on CPUs.*--backend torch"):
            learner(framework, "mae", precision=precision)


def test_on_a_gpu_activations_would_be_of_the_precision_asked_for(framework, monkeypatch):
    """What this machine can see of it: the context that is opened."""
    made, seen = learner(framework, "mae"), []
    place = {
        "paddle": ("paddle.amp", "auto_cast"),
        "oneflow": ("oneflow.amp", "autocast"),
        "torch": ("torch", "autocast"),
    }
    module, name = place[framework]
    monkeypatch.setattr(import_module(module), name, lambda *given, **named: seen.append((*given, *named.values())))
    for precision in ("bfloat16", "float16"):
        made.precision = precision
        made.autocast()
    found = [any(name in str(word) for word in given) for name, given in zip(("bfloat16", "float16"), seen)]
    assert found == [True, True]


@pytest.mark.parametrize("option", ["shard", "checkpoint_activations", "amp_o2"])
def test_an_option_of_another_backend_is_one_line_that_names_it(framework, option):
    kind, spec = part(framework, "learner").Learner, small.MODELS["moco-resnet18"]
    given = recipe_around(spec, PLAIN), small.arrays(spec)
    flag = "--" + option.replace("_", "-")
    own, owner = ("is for half precision", "paddle") if option == "amp_o2" else ("is for vision transformers", "torch")
    text = own if framework == owner else f"is an option of the backend {owner}: leave it out, or take --backend"
    with pytest.raises(UserError, match=f"{flag} {text}"):
        kind.make(*given, processes=part(framework, "distributed").start("cpu"), **{option: True})


# ---------------------------------------------------------------- a scaled loss
def test_a_scaled_loss_changes_no_bit_and_an_overflow_leaves_the_step_out(framework):
    if framework == "torch":  # it counts on the device: see test_torch_gpu.py
        assert not issubclass(part(framework, "learner").Learner, ScaledLearner)
        return
    data = [batch(small.inputs(small.MODELS["mae"]))]
    plain, scaled = learner(framework, "mae"), learner(framework, "mae")
    scaled.scaled = True
    one, other = (made.step(data, Values(0.1, 0.0)) for made in (plain, scaled))
    assert (one.loss, one.gradient_norm) == (other.loss, other.gradient_norm) and other.extras["loss_scale"] == 65536
    before = scaled.arrays()
    assert all(np.array_equal(array, before[name]) for name, array in plain.arrays().items())
    scaled.scale = 2.0**130
    result = scaled.step(data, Values(0.1, 0.0))
    assert result.bad is None and scaled.scale == 2.0**129
    assert all(np.array_equal(array, before[name]) for name, array in scaled.arrays().items())


# ---------------------------------------------------------------- float64
def wide(name):
    return {n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in small.arrays(small.MODELS[name]).items()}


@pytest.mark.parametrize("name", EXACT)
def test_float64_forward_and_training_step(probe, name):
    spec, arrays, inputs = small.MODELS[name], wide(name), small.inputs(small.MODELS[name])
    ours = probe.forward(spec, arrays, inputs, layers=True, precision="float64")
    theirs = objectives.forward(spec, arrays, inputs, layers=True)
    for key in [key for key in theirs if key in ours and ours[key].shape == theirs[key].shape]:
        hold("float64", distance(ours[key], theirs[key]), f"{name} {key}")
    ours = probe.train(spec, arrays, PLAIN, [[batch(inputs)]], [Values(0.1, 0.9)], precision="float64")
    truth = objectives.train_step(spec, arrays, inputs, momentum=0.9)
    assert {array.dtype for array in ours.values()} <= {np.dtype(np.float64), np.dtype(np.int64)}
    hold("float64", distance(ours["step0/loss"], truth.loss), f"{name} loss")
    for key in [key for key in ("q1", "q2", "k1", "k2", "prediction", "logits") if key in truth.outputs]:
        hold("float64", distance(ours[f"step0/{key}"], truth.outputs[key]), f"{name} {key}")
    for key, value in truth.moved.items():
        if "running" in key or key.startswith("momentum_encoder."):
            hold("float64", distance(ours[f"final/{key}"], value), f"{name} {key}")
    gradients = {p.name: ours[f"step0/grad/{p.name}"] for p in inventory(spec) if p.trainable}
    direction = formulas.random_direction(arrays, gradients, 0)
    slope = formulas.slope(truth.again, arrays, direction)
    along = sum((gradients[key] * d).sum() for key, d in direction.items())
    length = np.sqrt(sum((g**2).sum() for g in gradients.values()))
    hold("float64-gradient", abs(along - slope) / length, name)


@pytest.mark.parametrize("kind", ["adamw", "lars", "sgd"])
def test_float64_updates(probe, kind):
    spec, optimizer = small.MODELS["finetune-token"], OptimizerSpec(kind=kind, lr=1.0, weight_decay=0.1, decays="all")
    optimizer = replace(optimizer, average=0.9)
    arrays, micro, values = wide("finetune-token"), [batch(small.inputs(spec))], [Values(0.02, 0), Values(0.01, 0)]
    ours = probe.train(
        spec, arrays, optimizer, [micro] * 2, values, record=("gradients", "weights", "state"), precision="float64"
    )
    rules = {
        p.name: formulas.rule(p.name, len(p.shape), optimizer, spec.encoder.depth)
        for p in inventory(spec)
        if p.trainable
    }
    state: dict[str, np.ndarray] = {}
    for i, now in enumerate(values):
        gradients = {name: ours[f"step{i}/grad/{name}"] for name in rules}
        arrays, state = formulas.optimizer_step(optimizer, arrays, gradients, state, now.lr, rules)
        for name in rules:
            hold("float64", distance(ours[f"step{i}/{name}"], arrays[name]), f"{kind} step {i} {name}")
    for key, value in state.items():
        hold("float64", distance(ours[f"state/{key}"], value), f"{kind} {key}")


def test_lars_scales_matrices_of_any_length(probe):
    """Also those shorter than 1: the ratio of lengths has no threshold but 0 (arXiv 1708.03888, equation 6)."""
    spec = small.MODELS["finetune-token"]
    optimizer = OptimizerSpec(kind="lars", lr=1.0, weight_decay=0.0, decays="all", momentum=0.0, trust=0.1)
    arrays = {name: array * 1e-2 for name, array in wide("finetune-token").items()}
    micro = [batch(small.inputs(spec))]
    ours = probe.train(
        spec, arrays, optimizer, [micro], [Values(0.5, 0)], record=("gradients", "weights"), precision="float64"
    )
    name = "blocks.0.mlp.fc1.weight"
    gradient, before = ours[f"step0/grad/{name}"], np.float64(arrays[name])
    assert 0 < np.linalg.norm(before) < 1
    ratio = 0.1 * np.linalg.norm(before) / np.linalg.norm(gradient)
    hold("float64", distance(ours[f"step0/{name}"], before - 0.5 * ratio * gradient), "LARS on a short matrix")


def test_float64_in_two_processes(probe, framework):
    spec, values, rule = small.MODELS["moco-conv"], [Values(0.01, 0.9)], replace(PLAIN, momentum=0.9)
    arrays, inputs = wide("moco-conv"), small.inputs(spec, n=8)
    halves = parts(inputs, 2)
    asked = [training(spec, arrays, rule, [[batch(half)]], values, precision="float64") for half in halves]
    first, _ = Remote(framework).together(asked)
    alone = probe.train(spec, arrays, rule, [[batch(inputs)]], values, precision="float64")
    for key in arrays:
        hold("float64", distance(first[f"final/{key}"], alone[f"final/{key}"]), f"two processes, {key}")


# ---------------------------------------------------------------- runs in float64
RUN = ("tiny/test_mae_vit", "batch=16", "schedule.epochs=1", "monitor.knn_every=0", "--workers", "0")
DATA = ("--data", toy.sixteens())


def run(framework, task, *given):
    return part(framework, task).main(list(map(str, given)))


def state_of(folder):
    groups, state = checkpoint.load(checkpoint.latest(folder))
    return {f"{stem}/{name}": a for stem, group in groups.items() for name, a in group.items()}, state


def test_a_run_in_float64_stays_there_when_it_is_resumed(framework, tmp_path):
    wide = ("--precision", "float64")
    for name, stop in (("whole", 4), ("parts", 2)):
        assert run(framework, "pretrain", *RUN, *DATA, *wide, "--out", tmp_path / name, "--stop-after-steps", stop) == 0
    assert (
        run(
            framework, "pretrain", "--resume", tmp_path / "parts", *wide, *DATA, "--stop-after-steps", 4, "--workers", 0
        )
        == 0
    )
    (whole, state), (parts, _) = state_of(tmp_path / "whole"), state_of(tmp_path / "parts")
    assert state["precision"] == "float64"
    assert {a.dtype for a in whole.values()} == {np.dtype(np.float64), np.dtype(np.int64)}
    assert all(np.array_equal(a, parts[name]) for name, a in whole.items())
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "step"]
    assert len(losses) == 4 and all(float(np.float32(loss)) != loss for loss in losses)


def test_float64_weights_are_read_as_float32_with_a_line_that_says_so(framework, tmp_path, capsys):
    folder, wide = tmp_path / "run", ("--precision", "float64")
    assert run(framework, "pretrain", *RUN, *DATA, *wide, "--out", folder, "--stop-after-steps", 1) == 0
    capsys.readouterr()
    assert run(framework, "pretrain", "--resume", folder, *DATA, "--stop-after-steps", 2, "--workers", 0) == 0
    printed = (folder / "train.log").read_text()
    assert "arrays are float64 and are used as float32" in printed and "precision float64 -> float32" in printed
    assert {a.dtype for a in state_of(folder)[0].values()} == {np.dtype(np.float32), np.dtype(np.int64)}
    for precision, kind in (("float64", np.float64), ("float32", np.float32)):
        words = ("--embed", tmp_path / f"{precision}.safetensors", "--precision", precision, "--workers", 0)
        assert run(framework, "evaluate", folder, *words) == 0
        assert load_file(tmp_path / f"{precision}.safetensors")["features"].dtype == kind
