"""The reference's layers and encoders against hand-made numbers and the originals' tables."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from triport.core.spec import ModelSpec, ResNet
from triport.parity_tests.reference import layers as ref
from triport.parity_tests.tool import small

draw = np.random.default_rng(0)


# ---------------------------------------------------------------- elementary functions and layers
def test_erf_is_that_of_the_standard_library():
    x = np.concatenate([draw.uniform(-7, 7, 20000), draw.uniform(-1e-3, 1e-3, 2000), [0.0, -0.0, 6.0, 40.0, -np.inf]])
    want = np.array([math.erf(v) for v in x])
    assert np.abs(ref.erf(x) - want).max() < 5e-16
    small = x[(np.abs(x) < 1e-3) & (x != 0)]
    assert np.abs(ref.erf(small) / [math.erf(v) for v in small] - 1).max() < 5e-16  # relative, too, near 0


def test_gelu_is_exact_and_not_the_tanh_form():
    assert ref.gelu(np.array([1.0]))[0] == pytest.approx(0.8413447460685429, abs=1e-15)  # the normal distribution at 1
    tanh = 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (1 + 0.044715)))
    assert abs(ref.gelu(np.array([1.0]))[0] - tanh) > 1e-4


def test_softmax_and_layer_norm_on_hand_made_rows():
    assert np.allclose(ref.softmax(np.log([[1.0, 3.0]]) + 1000), [[0.25, 0.75]], rtol=1e-12)
    walk = ref.Walk({"n.weight": np.array([2.0, 1.0]), "n.bias": np.array([0.5, 0.0])})
    y = ref.layer_norm(walk, "n", np.array([[1.0, 3.0]]), eps=3.0)  # variance 1, so divided by 2
    assert np.allclose(y, [[-0.5, 0.5]])


@pytest.mark.parametrize(("stride", "padding", "size"), [(1, 1, 3), (2, 1, 3), (2, 3, 7), (2, 0, 1)])
def test_conv_is_the_sum_over_each_window(stride, padding, size):
    x, weight = draw.standard_normal((2, 3, 9, 8)), draw.standard_normal((4, 3, size, size))
    y = ref.conv(ref.Walk({"c.weight": weight}), "c", x, stride, padding)
    assert y.shape == (2, 4, (9 + 2 * padding - size) // stride + 1, (8 + 2 * padding - size) // stride + 1)
    wide = np.pad(x, ((0, 0), (0, 0), (padding,) * 2, (padding,) * 2))
    for n, o, r, c in itertools.product(*map(range, y.shape)):
        window = wide[n, :, r * stride : r * stride + size, c * stride : c * stride + size]
        assert y[n, o, r, c] == pytest.approx((window * weight[o]).sum(), abs=1e-12)


def test_max_pool_ignores_the_border():
    x = -1 - np.arange(16.0).reshape(1, 1, 4, 4)
    assert ref.max_pool(x, 3, 2, 1).tolist() == [[[[-1, -2], [-5, -6]]]]  # zeros at the border would win here


def test_batch_norm_divides_by_the_biased_and_remembers_the_unbiased_variance():
    names = {"b.weight": [2.0], "b.bias": [1.0], "b.running_mean": [0.5], "b.running_var": [4.0]}
    arrays = {k: np.array(v) for k, v in names.items()} | {"b.num_batches_tracked": np.array(7)}
    x = np.array([[1.0], [3.0]])
    walk = ref.Walk(arrays, training=True)
    assert np.allclose(ref.batch_norm(walk, "b", x), 1 + 2 * np.array([[-1], [1]]) / np.sqrt(1 + 1e-5))
    assert walk.buffers["b.running_mean"] == pytest.approx([0.9 * 0.5 + 0.1 * 2])
    assert walk.buffers["b.running_var"] == pytest.approx([0.9 * 4 + 0.1 * 2])  # unbiased: 2, biased: 1
    assert walk.buffers["b.num_batches_tracked"] == 8
    ref.batch_norm(walk, "b", x)  # the second view goes on from there
    assert walk.buffers["b.running_mean"] == pytest.approx([0.9 * 0.65 + 0.1 * 2])
    still = ref.Walk(arrays)
    assert np.allclose(ref.batch_norm(still, "b", x), 1 + 2 * (x - 0.5) / np.sqrt(4 + 1e-5)) and not still.buffers


# ---------------------------------------------------------------- position tables
@pytest.mark.parametrize(
    ("kind", "width", "side", "total", "squares"),
    [
        ("moco", 768, 14, 69594.49408, 75264),
        ("moco", 384, 14, 34713.82395, 37632),
        ("mae", 768, 14, 69594.49385, 75264),
        ("mae", 1024, 14, 92849.19793, 100352),
        ("mae", 1280, 16, 149578.40577, 163840),
        ("mae", 512, 14, 46340.33312, 50176),
    ],
)
def test_position_tables_have_the_originals_sums(kind, width, side, total, squares):
    table = ref.position_table(kind, width, side, side)
    assert table.sum() == pytest.approx(total, abs=2e-3)  # the originals' are rounded to float32
    assert (table**2).sum() == pytest.approx(squares, abs=1e-6)


@pytest.mark.parametrize(
    ("r", "c", "channel", "moco", "mae"),
    [
        (3, 5, 0, 0.141120, -0.958924),
        (3, 5, 1, 0.278380, -0.998573),
        (3, 5, 191, 0.000315, 0.000525),
        (3, 5, 192, -0.989992, 0.283662),
        (3, 5, 384, -0.958924, 0.141120),
        (3, 5, 577, 0.053395, -0.960471),
        (0, 1, 0, 0, 0.841471),
        (7, 2, 10, -0.9288025, 0.9451102),
        (7, 2, 394, 0.9451102, -0.9288025),
    ],
)
def test_position_tables_hold_the_originals_values(r, c, channel, moco, mae):
    for kind, want in (("moco", moco), ("mae", mae)):
        table = ref.position_table(kind, 768, 14, 14)
        assert table[0, 1 + 14 * r + c, channel] == pytest.approx(want, abs=6e-7)
        assert not table[0, 0].any()


# ---------------------------------------------------------------- vision transformer
def test_drop_path_rates_grow_from_0_and_gates_keep_the_mean():
    encoder = replace(small.VIT, depth=12, drop_path=0.1)
    draws = np.zeros((2, 12, 2))
    draws[1] = 0.999
    assert ref.drop_path_gates(encoder, 0, draws) == (1.0, 1.0)
    for i in range(1, 12):
        attention, _ = ref.drop_path_gates(encoder, i, draws)
        assert np.ravel(attention) == pytest.approx([0.0, 1 / (1 - 0.1 * i / 11)])


def test_a_dropped_block_changes_nothing_and_evaluation_drops_none():
    encoder = replace(small.VIT, depth=2, drop_path=0.5)
    arrays = small.arrays(ModelSpec(encoder=encoder, objective=small.HEAD))
    images = draw.standard_normal((2, 3, *encoder.image))
    draws = np.zeros((2, 2, 2))  # floor(0.5 + 0) = 0: the second block is dropped
    walk = ref.Walk(arrays, training=True, watched=True)
    x = ref.vit(walk, "", encoder, images, draws=draws)
    assert np.array_equal(x, walk.outputs["blocks.0"])
    assert not np.array_equal(ref.vit(ref.Walk(arrays), "", encoder, images, draws=draws), x)


def test_patches_are_a_convolution_whose_stride_is_its_kernel():
    encoder = replace(small.VIT, patch=(4, 4))
    arrays = small.arrays(ModelSpec(encoder=encoder, objective=small.HEAD))
    x = draw.standard_normal((2, 3, *encoder.image))
    want = ref.conv(ref.Walk(arrays), "patch_embed.proj", x, stride=4, padding=0, bias=True)
    tokens = ref.patch_tokens(ref.Walk(arrays), "", encoder, x)
    assert np.allclose(tokens, want.reshape(2, 32, -1).transpose(0, 2, 1), atol=1e-12)


def test_attention_stacks_query_key_value_then_heads():
    # Two tokens, two heads of width 2. Queries and keys are 0, so each head averages the values over tokens.
    weight = np.zeros((12, 4))
    weight[8:12] = np.eye(4)
    arrays = {"a.qkv.weight": weight, "a.qkv.bias": np.zeros(12)}
    arrays |= {"a.proj.weight": np.eye(4), "a.proj.bias": np.zeros(4)}
    x = draw.standard_normal((1, 2, 4))
    assert np.allclose(ref.attention(ref.Walk(arrays), "a", x, 2), x.mean(axis=1, keepdims=True))
    # Let the second head alone look: its query and key are the third channel.
    weight[2, 2] = weight[6, 2] = 1.0
    y = ref.attention(ref.Walk(arrays), "a", x, 2)
    scores = np.exp(np.outer(x[0, :, 2], x[0, :, 2]) / math.sqrt(2))
    assert np.allclose(y[0, :, :2], x[0, :, :2].mean(axis=0))
    assert np.allclose(y[0, :, 2:], (scores / scores.sum(1, keepdims=True)) @ x[0, :, 2:])


# ---------------------------------------------------------------- ResNet
def resnet(depth):
    """A ResNet and random arrays for it."""
    encoder = ResNet(depth=depth, zero_init_residual=False, image=(32, 32))
    return encoder, small.arrays(ModelSpec(encoder=encoder, objective=small.HEAD))


@pytest.mark.parametrize(("depth", "width"), [(18, 512), (50, 2048)])
def test_resnet_halves_the_image_five_times(depth, width):
    encoder, arrays = resnet(depth)
    walk = ref.Walk(arrays, watched=True)
    assert ref.resnet(walk, "", encoder, draw.standard_normal((2, 3, 64, 96))).shape == (2, width)
    sizes = {name: x.shape[2:] for name, x in walk.outputs.items()}
    assert sizes["conv1"] == (32, 48) and sizes["layer1.0"] == (16, 24) and sizes["layer4.1"] == (2, 3)


def test_a_residual_branch_that_starts_at_0_passes_its_input_on():
    encoder, arrays = resnet(50)
    arrays["layer1.1.bn3.weight"] = arrays["layer1.1.bn3.bias"] = np.zeros(256)
    walk = ref.Walk(arrays, training=True, watched=True)
    ref.resnet(walk, "", encoder, draw.standard_normal((4, 3, 32, 32)))
    assert np.array_equal(walk.outputs["layer1.1"], walk.outputs["layer1.0"])
    assert not np.array_equal(walk.outputs["layer1.2"], walk.outputs["layer1.1"])


def test_the_stride_of_a_bottleneck_sits_in_its_middle():
    _, arrays = resnet(50)
    x = draw.standard_normal((1, 256, 4, 4))
    y = ref.residual_block(ref.Walk(arrays), "layer2.0", x, 2, bottleneck=True)
    x[:, :, 1, 1] += 5.0  # an odd place: a 1x1 convolution with stride 2 would never see it
    assert not np.allclose(ref.residual_block(ref.Walk(arrays), "layer2.0", x, 2, bottleneck=True), y)
