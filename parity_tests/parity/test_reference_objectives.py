"""The reference's objectives against the originals' numbers and what must be true of them."""

from __future__ import annotations

import numpy as np
import pytest

from triport.parity_tests.reference import layers as ref
from triport.parity_tests.reference import objectives
from triport.parity_tests.reference import optimizers as optimisers
from triport.parity_tests.tool import small

draw = np.random.default_rng(0)


# ---------------------------------------------------------------- MoCo
@pytest.mark.parametrize(("temperature", "qk", "kq"), [(1.0, 1.871318, 1.837296), (0.2, 0.595134, 0.532264)])
def test_contrast_is_the_originals(temperature, qk, kq):
    q, k = np.array([[1.0, 0], [0, 2], [1, 1]]), np.array([[3.0, 0], [0, 1], [1, -1]])
    assert objectives.contrast(q, k, temperature) == pytest.approx(qk, abs=6e-7)
    assert objectives.contrast(k, q, temperature) == pytest.approx(kq, abs=6e-7)


def test_contrast_of_two_processes_is_that_of_one():
    q, k = draw.standard_normal((2, 6, 5))
    assert objectives.contrast(q, k, 0.3, ranks=2) == pytest.approx(objectives.contrast(q, k, 0.3), rel=1e-14)
    assert objectives.contrast(q, np.roll(k, 3, axis=0), 0.3) != pytest.approx(objectives.contrast(q, k, 0.3))


def test_momentum_moves_parameters_and_leaves_statistics():
    arrays = {"w.weight": np.array([3.0]), "w.running_mean": np.array([1.0]), "w.num_batches_tracked": np.array(4)}
    both = {f"base_encoder.{name}": array for name, array in arrays.items()}
    both |= {f"momentum_encoder.{name}": 2 * array for name, array in arrays.items()}
    moved = objectives.momentum_update(both, 0.75)
    assert list(moved) == ["momentum_encoder.w.weight"] and moved["momentum_encoder.w.weight"] == [0.75 * 6 + 0.25 * 3]


def test_a_moco_step_has_its_slopes_where_the_gradient_goes():
    spec = small.MODELS["moco-vit"]
    arrays, views = small.arrays(spec), small.inputs(spec)
    step = objectives.train_step(spec, arrays, views, momentum=0.9)
    assert step.again(arrays) == pytest.approx(step.loss, rel=1e-14)
    assert objectives.train_step(spec, arrays, views, momentum=0.9, ranks=2).loss == pytest.approx(step.loss, rel=1e-14)
    keys = optimisers.random_direction(arrays, [k for k in arrays if k.startswith("momentum_encoder.")], 1)
    assert optimisers.slope(step.again, arrays, keys) == 0.0  # no gradient reaches the momentum encoder
    blocks = optimisers.random_direction(arrays, [k for k in arrays if k.startswith("base_encoder.blocks.")], 2)
    slope = optimisers.slope(step.again, arrays, blocks)
    ahead, behind = ({**arrays, **{k: arrays[k] + h * d for k, d in blocks.items()}} for h in (1e-5, -1e-5))
    assert abs(slope) > 1e-3 and slope == pytest.approx((step.again(ahead) - step.again(behind)) / 2e-5, rel=1e-6)
    # both views move the base encoder's statistics, one after the other; the momentum encoder has its own
    assert step.moved["base_encoder.head.1.num_batches_tracked"] == 3 + 2
    base, own = [step.moved[f"{part}_encoder.head.1.running_mean"] for part in ("base", "momentum")]
    assert not np.allclose(base, own)


def test_keys_come_after_the_momentum_update():
    spec = small.MODELS["moco-vit"]
    arrays, views = small.arrays(spec), small.inputs(spec)
    step = objectives.train_step(spec, arrays, views, momentum=0.0)  # the momentum encoder becomes the base encoder
    walk = ref.Walk(arrays, training=True)
    want = objectives.project(walk, "base_encoder.", spec.encoder, views["view1"])
    assert np.allclose(step.outputs["k1"], want, atol=1e-12)


@pytest.mark.parametrize("name", ["moco-vit", "moco-resnet18"])
def test_a_training_step_normalises_what_evaluation_takes_as_it_is(name):
    spec = small.MODELS[name]
    step = objectives.train_step(spec, small.arrays(spec), small.inputs(spec), momentum=0.9)
    for keys in ("k1", "k2"):  # the projector ends in a batch norm without scale and shift
        assert np.allclose(step.outputs[keys].mean(axis=0), 0, atol=1e-12)
        assert np.allclose(step.outputs[keys].var(axis=0), 1, atol=1e-2)
    ends_in_norm = name == "moco-vit"  # the predictor of a ResNet does not
    assert np.allclose(step.outputs["q1"].mean(axis=0), 0, atol=1e-12) == ends_in_norm


# ---------------------------------------------------------------- MAE
def test_mask_of_the_originals_example():
    mask = objectives.mask_from_noise(np.array([[0.9, 0.1, 0.5, 0.3]]), 0.75)
    assert mask.place.tolist() == [[3, 0, 2, 1]] and mask.visible.tolist() == [[1]]
    assert mask.hidden.tolist() == [[1, 0, 1, 1]]
    assert objectives.mask_from_noise(np.zeros((1, 4)), 0.5).visible.tolist() == [[0, 1]]  # ties keep their order


@pytest.mark.parametrize(("patches", "ratio", "keep"), [(196, 0.75, 49), (196, 0.9, 19), (256, 0.8, 51)])
def test_mask_keeps_as_many_as_the_original(patches, ratio, keep):
    mask = objectives.mask_from_noise(draw.random((2, patches)), ratio)
    assert mask.visible.shape == (2, keep) and (mask.hidden == 0).sum(axis=1).tolist() == [keep, keep]


def test_patches_run_row_column_channel():
    image = np.arange(3 * 32 * 32.0).reshape(1, 3, 32, 32)
    assert objectives.patchify(image, (16, 16))[0, 2, 100] == 1601


def test_normalised_pixels_have_unit_unbiased_variance():
    ramp = np.tile(np.linspace(0, 1, 224), (1, 3, 224, 1))
    target = objectives.mae_target(ramp, (16, 16), normalised=True)
    loss = objectives.mae_loss(np.zeros_like(target), target, np.ones((1, 196)))
    variance = objectives.patchify(ramp, (16, 16)).var(axis=2, ddof=1)
    assert loss == pytest.approx(np.mean(767 / 768 * variance / (variance + 1e-6)), rel=1e-12)
    assert loss < 767 / 768


def test_mae_tells_hidden_patches_apart_by_their_place_alone():
    spec = small.MODELS["mae"]
    arrays, inputs = small.arrays(spec), small.inputs(spec, n=1)
    out = objectives.forward(spec, arrays, inputs)
    hidden, seen = np.flatnonzero(out["mask"][0] == 1), np.flatnonzero(out["mask"][0] == 0)
    assert out["prediction"].shape == (1, 6, 96) and len(seen) == 2
    row, column = divmod(hidden[0], 3)
    other = inputs["images"].copy()
    other[0, :, 8 * row, 4 * column] += 1  # in a hidden patch: what is said stays, what should be said changes
    again = objectives.forward(spec, arrays, inputs | {"images": other})
    assert np.array_equal(again["prediction"], out["prediction"]) and again["loss"] != out["loss"]
    placeless = arrays | {"decoder_pos_embed": arrays["decoder_pos_embed"] * 0}
    printed = objectives.forward(spec, placeless, inputs)["prediction"][0]
    assert np.allclose(printed[hidden[0]], printed[hidden[1]], atol=1e-12) and not np.allclose(
        printed[seen[0]], printed[seen[1]]
    )


# ---------------------------------------------------------------- classifiers
def test_the_slope_of_a_loss_is_its_gradient():
    spec = small.MODELS["finetune-token"]
    arrays, inputs = small.arrays(spec), small.inputs(spec)
    step = objectives.train_step(spec, arrays, inputs)
    gradient = (ref.softmax(step.outputs["logits"]) - np.eye(7)[inputs["labels"]]).mean(axis=0)
    for i in range(7):
        slope = optimisers.slope(step.again, arrays, {"head.bias": np.eye(7)[i]})
        assert slope == pytest.approx(gradient[i], abs=1e-15)


def test_softmax_does_not_feel_the_key_bias():
    spec = small.MODELS["finetune-token"]
    arrays = small.arrays(spec)
    step = objectives.train_step(spec, arrays, small.inputs(spec))
    query, key = np.zeros(96), np.zeros(96)
    query[:32] = key[32:64] = draw.standard_normal(32)
    assert abs(optimisers.slope(step.again, arrays, {"blocks.1.attn.qkv.bias": key})) < 1e-15
    assert abs(optimisers.slope(step.again, arrays, {"blocks.1.attn.qkv.bias": query})) > 1e-5


def test_soft_targets_contain_hard_and_smoothed_ones():
    logits, labels = draw.standard_normal((4, 5)), np.array([1, 0, 4, 4])
    hard = np.eye(5)[labels]
    assert objectives.soft_cross_entropy(logits, hard) == pytest.approx(objectives.cross_entropy(logits, labels))
    smooth = 0.9 * hard + 0.1 / 5
    assert objectives.soft_cross_entropy(logits, smooth) == pytest.approx(objectives.cross_entropy(logits, labels, 0.1))


def test_mean_pooling_norms_after_the_mean_and_leaves_the_token_out():
    spec = small.MODELS["finetune-mean"]
    arrays = small.arrays(spec)
    out = objectives.forward(spec, arrays, small.inputs(spec), layers=True)
    mean = out["layers/blocks.2"][:, 1:].mean(axis=1)
    normal = (mean - mean.mean(1, keepdims=True)) / np.sqrt(mean.var(1, keepdims=True) + 1e-6)
    assert np.allclose(out["features"], normal * arrays["fc_norm.weight"] + arrays["fc_norm.bias"], rtol=1e-12)


def test_head_norm_of_the_probe_sees_the_batch_and_moves():
    spec = small.MODELS["probe-mae"]
    arrays, inputs = small.arrays(spec), small.inputs(spec)
    step = objectives.train_step(spec, arrays, inputs)
    f, weight, bias = step.outputs["features"], arrays["head.1.weight"], arrays["head.1.bias"]
    assert np.allclose(step.outputs["logits"], (f - f.mean(0)) / np.sqrt(f.var(0) + 1e-6) @ weight.T + bias)
    mean, var = arrays["head.0.running_mean"], arrays["head.0.running_var"]
    assert np.allclose(step.moved["head.0.running_var"], 0.9 * var + 0.1 * f.var(0, ddof=1))
    logits = objectives.forward(spec, arrays, inputs)["logits"]
    assert np.allclose(logits, (f - mean) / np.sqrt(var + 1e-6) @ weight.T + bias)


def test_a_probe_in_evaluation_mode_moves_nothing():
    spec = small.MODELS["probe-resnet18"]
    arrays, inputs = small.arrays(spec), small.inputs(spec)
    step = objectives.train_step(spec, arrays, inputs)
    assert not step.moved and step.loss == objectives.forward(spec, arrays, inputs)["loss"]


def test_drop_path_draws_matter_in_training_alone():
    spec = small.MODELS["finetune-mean"]
    arrays, inputs = small.arrays(spec), small.inputs(spec)
    other = inputs | {"drop_path": 1 - inputs["drop_path"]}
    assert objectives.train_step(spec, arrays, inputs).loss != objectives.train_step(spec, arrays, other).loss
    assert objectives.forward(spec, arrays, inputs)["loss"] == objectives.forward(spec, arrays, other)["loss"]
