"""`triport parity compare`: faults planted in one backend are found in the layer or stage where they are."""

from __future__ import annotations

import json
from functools import cache
from importlib.util import find_spec

import numpy as np
import pytest

from core import recipe as recipes
from core.errors import UserError
from parity_tests import __main__ as program
from parity_tests import trace, trial
from parity_tests.align import align, relation
from parity_tests.compare import neighbours
from parity_tests.comparison import compare
from parity_tests.explain import explain

needs_torch = pytest.mark.skipif(
    find_spec("torch") is None, reason="faults are planted in torch: run in its environment"
)
MOCO, MAE, CONV, PROBE = "tiny/test_moco_vit", "tiny/test_mae_vit", "tiny/test_moco_vit_conv", "tiny/test_mae_linear"


def near(backend, questions):
    """Ask this very interpreter, where faults can be planted."""
    from importlib import import_module

    probe = import_module(f"backends.{backend}.probe")
    return [getattr(probe, q.function)(**q.given) for q in questions]


@cache
def subject(name):
    return trial.assemble(recipes.load(name), steps=3, batch=32)


@cache
def sound(name):
    return trace.record(subject(name), "torch", ask=near)


def planted(name, fault):
    """The comparison of a sound trace with one that was recorded under a fault."""
    with fault:
        faulty = trace.record(subject(name), "torch", ask=near, noise=False)
    return compare(sound(name), faulty)


def found(result):
    assert result.first is not None, "the fault was not found"
    line = result.lines[result.first]
    return line.step, line.stage, line.name


def words(result):
    assert result.first is not None
    return " ".join(explain(result.a, result.b, result.lines[result.first]))


# ---------------------------------------------------------------- planted faults
@needs_torch
@pytest.mark.parametrize("name", [MOCO, MAE, CONV, PROBE])
def test_a_sound_backend_agrees_with_itself_and_with_the_reference(name):
    result = compare(sound(name), trace.record(trial.shaken(subject(name), seed=2), "torch", ask=near, noise=False))
    same = [line for line in result.lines if line.stage not in ("first values", "inputs")]  # those were shaken
    assert len(same) > 60 and [line for line in same if not line.agrees] == []
    reference = compare(trace.record(subject(name), trace.REFERENCE), sound(name))
    assert reference.first is None and len([line for line in reference.lines if line.stage == "forward"]) > 10


@needs_torch
@pytest.mark.parametrize(
    ("name", "layer"),
    [
        (MOCO, "base_encoder.blocks.0.norm1"),
        (MOCO, "base_encoder.blocks.1.norm2"),
        (MOCO, "base_encoder.norm"),
        (MOCO, "momentum_encoder.blocks.1.norm1"),
        (MAE, "blocks.0.norm2"),
        (MAE, "norm"),
        (MAE, "decoder_blocks.0.norm1"),
        (MAE, "decoder_norm"),
    ],
)
def test_another_eps_is_found_in_its_layer_norm(name, layer):
    from parity_tests import faults

    result = planted(name, faults.eps(layer))
    assert found(result) == (0, "forward", layer)
    assert "misses the layer's formula" in words(result)


@needs_torch
@pytest.mark.parametrize("layer", ["blocks.0.attn.proj", "blocks.1.attn.proj", "decoder_blocks.0.attn.proj"])
def test_a_transposed_weight_is_found(layer):
    from parity_tests import faults

    result = planted(MAE, faults.transposed(layer))
    assert found(result) == (0, "forward", layer)
    assert "misses the layer's formula" in words(result)
    stored = planted(MAE, faults.transposed(layer, at_load=True))
    assert found(stored) == (0, "first values", f"{layer}.weight") and "transposed" in words(stored)


@needs_torch
@pytest.mark.parametrize(("name", "encoder", "other"), [(MOCO, "base_encoder", "mae"), (MAE, "", "moco")])
def test_a_swapped_position_table_is_found(name, encoder, other):
    from parity_tests import faults

    prefix = f"{encoder}." if encoder else ""
    stored = planted(name, faults.other_position(other, encoder, at_load=True))
    assert found(stored) == (0, "first values", f"{prefix}pos_embed")
    assert "another order" in words(stored)
    if name == MOCO:  # the encoder of MAE adds positions to the visible patches alone, elsewhere
        used = planted(name, faults.other_position(other, encoder))
        assert found(used) == (0, "forward", f"{prefix}blocks.0.norm1/input")
        assert "before it, outside of any layer" in words(used)
        assert neighbours(used)[0][1].name == f"{prefix}patch_embed"


@needs_torch
@pytest.mark.parametrize(
    ("name", "first"),
    [(MOCO, "base_encoder.head.1"), (CONV, "base_encoder.patch_embed.proj.1"), (PROBE, "head.0")],
)
def test_batch_norm_statistics_are_found(name, first):
    from parity_tests import faults

    slow = planted(name, faults.batch_norm_momentum(0.01))
    assert found(slow) == (0, "batch-norm statistics", f"{first}.running_mean")
    if name != MOCO:  # there the mean is 0 at first
        assert "times as far" in words(slow)
    biased = planted(name, faults.biased_variance())
    assert found(biased) == (0, "batch-norm statistics", f"{first}.running_var")
    if name == PROBE:
        assert "biased variance of 32 values" in words(biased)


@needs_torch
@pytest.mark.parametrize(("name", "layer"), [(MOCO, "base_encoder.blocks.0"), (MAE, "blocks.0")])
def test_the_tanh_form_of_gelu_is_found_between_two_layers(name, layer):
    from parity_tests import faults

    result = planted(name, faults.tanh_gelu())
    assert found(result) == (0, "forward", f"{layer}.mlp.fc2/input")
    assert [line.name for _, line in neighbours(result)][2] == f"{layer}.mlp.fc1"


@needs_torch
def test_a_loss_without_2_t_is_found():
    from parity_tests import faults

    result = planted(MOCO, faults.no_two_t())
    assert found(result) == (0, "loss", "loss")
    assert "2.5 times" in words(result) and "1 / (2 T)" in words(result)


@needs_torch
def test_a_momentum_encoder_that_moves_late_is_found():
    from parity_tests import faults

    after = planted(MOCO, faults.momentum_after_step())
    step, stage, name = found(after)
    assert (step, stage) == (0, "momentum update") and name.startswith("momentum_encoder.")
    assert "moved after the step" in words(after)
    keys = planted(MOCO, faults.momentum_after_keys())
    assert found(keys) == (1, "momentum update", "k1")
    assert "before the keys were computed" in words(keys)


@needs_torch
def test_weight_decay_on_biases_is_found():
    from parity_tests import faults

    result = planted(MAE, faults.decayed_biases())
    step, stage, name = found(result)
    assert stage == "optimiser update" and name.endswith(".bias") and step < 2
    assert "weight decay were +0.05" in words(result)


@needs_torch
def test_a_wrong_gradient_is_found_on_the_way_back():
    from parity_tests import faults

    result = planted(MAE, faults.wrong_gradient("blocks.1.norm2"))
    assert found(result) == (0, "backward", "blocks.1.norm2/input")
    around = [line for _, line in neighbours(result)]
    assert [line.agrees for line in around] == [True] * 3 + [False] * 4


# ---------------------------------------------------------------- the command
@needs_torch
def test_the_command_shows_the_first_layer_and_its_neighbours(tmp_path, capsys):
    from parity_tests import faults

    with faults.eps("blocks.1.norm1", 1e-3):
        faulty = trace.record(subject(MAE), "torch", ask=near, noise=False)
    trace.write(tmp_path / "a.safetensors", sound(MAE))
    trace.write(tmp_path / "b.safetensors", faulty)
    files = [str(tmp_path / f"{name}.safetensors") for name in "ab"]
    assert program.main(["compare", *files]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "first to depart: step 0, forward: blocks.1.norm1" in text
    assert "> blocks.1.norm1" in text and "blocks.1.attn.qkv" in text
    assert program.main(["compare", *files, "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["first"]["name"] == "blocks.1.norm1" and not said["agree"]
    assert program.main(["compare", files[0], files[0]]) == 0
    assert "they agree within bounds" in capsys.readouterr().out
    assert program.main(["compare", *files, "--stage", "inputs"]) == 0


@needs_torch
def test_what_cannot_be_compared_is_a_mistake_of_the_user(tmp_path, capsys):
    trace.write(tmp_path / "moco.safetensors", sound(MOCO))
    trace.write(tmp_path / "mae.safetensors", sound(MAE))
    (tmp_path / "text.safetensors").write_text("no trace")
    for pair, told in (
        (("moco", "mae"), "different models"),
        (("moco", "text"), "cannot read"),
        (("moco", "no"), "cannot"),
    ):
        assert program.main(["compare", *(str(tmp_path / f"{name}.safetensors") for name in pair)]) == 2
        assert told in capsys.readouterr().err
    with pytest.raises(UserError, match="in the stage nowhere"):
        compare(sound(MAE), sound(MAE), "nowhere")


# ---------------------------------------------------------------- shapes that differ on purpose
def test_shapes_that_differ_on_purpose_are_aligned():
    tokens = np.arange(24.0).reshape(2, 3, 4)
    for other in (tokens[:, :1], tokens[:, 0], tokens[:, 1:]):
        for one, two in ((tokens, other), (other, tokens)):
            pair = align(one, two)
            assert pair is not None and np.array_equal(*pair)
    picture = np.arange(120.0).reshape(2, 3, 4, 5)
    for other in (picture.transpose(0, 2, 3, 1), picture.reshape(2, 3, 20).transpose(0, 2, 1)):
        pair = align(picture, other)
        assert pair is not None and np.array_equal(*pair)
    assert align(tokens, np.zeros((2, 5, 4))) is None and align(np.zeros(3), np.zeros(4)) is None


def test_simple_relations_are_named():
    a = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert "transposed" in relation(a, a.T)
    assert "another order" in relation(a, a[::-1])
    assert relation(a, 2.5 * a) == "the second is 2.5 times the first"
    assert relation(a, a + np.eye(2)) == "" and relation(a, a) == "both hold the same numbers in another order"
