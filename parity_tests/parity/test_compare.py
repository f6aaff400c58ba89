"""`triport parity compare`: faults planted in one backend are found in the layer or stage where they are."""

from __future__ import annotations

import json
import re
from functools import cache

import numpy as np
import pytest

from triport.core.errors import UserError
from triport.core.spec import recipe as recipes
from triport.parity_tests.conftest import here
from triport.parity_tests.tool import __main__ as program
from triport.parity_tests.tool import faults, trace, trial
from triport.parity_tests.tool.align import align, relation
from triport.parity_tests.tool.ask import ask, near
from triport.parity_tests.tool.bounds import hold
from triport.parity_tests.tool.compare import neighbours
from triport.parity_tests.tool.comparison import compare
from triport.parity_tests.tool.explain import explain

MOCO, MAE, CONV, PROBE = "tiny/test_moco_vit", "tiny/test_mae_vit", "tiny/test_moco_vit_conv", "tiny/test_mae_linear"


@pytest.fixture(scope="module")
def backend(probe):
    """The framework of this interpreter, in which faults can be planted."""
    return probe.__name__.split(".")[2]


@cache
def subject(name):
    return trial.assemble(recipes.load(name), steps=2, batch=32, precision="float64")


@cache
def sound(backend, name):
    return trace.record(subject(name), backend, ask=near)


@cache
def faulty(backend, name, fault, *given):
    """A trace that was recorded under a fault."""
    with getattr(faults, fault)(backend, *given):
        return trace.record(subject(name), backend, ask=near)


def planted(backend, name, fault, *given):
    """The comparison of a sound trace with one that was recorded under a fault."""
    return compare(sound(backend, name), faulty(backend, name, fault, *given))


def found(result):
    assert result.first is not None, "the fault was not found"
    line = result.lines[result.first]
    return line.step, line.stage, line.name


def words(result):
    assert result.first is not None
    return " ".join(explain(result.a, result.b, result.lines[result.first]))


# ---------------------------------------------------------------- planted faults
@pytest.mark.parametrize("name", [MOCO, MAE, CONV, PROBE])
def test_a_sound_backend_agrees_with_the_reference(backend, name):
    reference = compare(trace.record(subject(name), trace.REFERENCE), sound(backend, name))
    assert reference.first is None and len([line for line in reference.lines if line.stage == "forward"]) > 10
    assert {line.limit for line in reference.lines if line.limit} == {"float64"}


def test_float32_is_checked_against_what_it_proves(backend):
    """Against float64: everything of the first step and every update, nothing that ReLUs may have moved."""
    rough = trial.assemble(recipes.load(CONV), steps=2, batch=32)
    result = compare(sound(backend, CONV), trace.record(rough, backend, ask=near))
    assert result.first is None and len(result.lines) > 60
    assert {line.stage for line in result.lines if line.step == 1} == {
        "inputs", "momentum update", "optimiser update", "optimiser state"
    }  # fmt: skip
    for line in result.lines:
        if line.limit:
            hold(line.limit, line.error, f"{CONV} {line.stage} {line.name}")


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        (MOCO, "base_encoder.blocks.0.norm1"),
        (MOCO, "momentum_encoder.blocks.1.norm1"),
        (MAE, "blocks.0.norm2"),
        (MAE, "decoder_norm"),
    ],
)
def test_another_eps_is_found_in_its_layer_norm(backend, name, layer):
    result = planted(backend, name, "eps", layer)
    assert found(result) == (0, "forward", layer)
    assert "misses the layer's formula" in words(result)


@pytest.mark.parametrize("layer", ["blocks.0.attn.proj", "blocks.1.attn.proj", "decoder_blocks.0.attn.proj"])
def test_a_transposed_weight_is_found(backend, layer):
    result = planted(backend, MAE, "transposed", layer)
    assert found(result) == (0, "forward", layer)
    assert "misses the layer's formula" in words(result)
    stored = planted(backend, MAE, "transposed_when_loaded", layer)
    assert found(stored) == (0, "initial values", f"{layer}.weight") and "transposed" in words(stored)


@pytest.mark.parametrize(("name", "encoder", "other"), [(MOCO, "base_encoder", "mae"), (MAE, "", "moco")])
def test_a_swapped_position_table_is_found(backend, name, encoder, other):
    prefix = f"{encoder}." if encoder else ""
    stored = planted(backend, name, "other_position_when_loaded", other, encoder)
    assert found(stored) == (0, "initial values", f"{prefix}pos_embed")
    assert "another order" in words(stored)
    if name == MOCO:  # the encoder of MAE adds positions to the visible patches alone, elsewhere
        used = planted(backend, name, "other_position", other, encoder)
        assert found(used) == (0, "forward", f"{prefix}blocks.0.norm1/input")
        assert f"before {prefix}blocks.0.norm1, outside of any layer" in words(used)
        assert neighbours(used)[0][1].name == f"{prefix}patch_embed"


@pytest.mark.parametrize(
    ("name", "first"),
    [(MOCO, "base_encoder.head.1"), (CONV, "base_encoder.patch_embed.proj.1"), (PROBE, "head.0")],
)
def test_batch_norm_statistics_are_found(backend, name, first):
    slow = planted(backend, name, "batch_norm_momentum")
    assert found(slow) == (0, "batch-norm statistics", f"{first}.running_mean")
    if name != MOCO:  # there the mean is 0 at first
        assert "times as far" in words(slow)
    biased = planted(backend, name, "biased_variance")
    assert found(biased) == (0, "batch-norm statistics", f"{first}.running_var")
    if name == PROBE:
        assert "biased variance of 32 values" in words(biased)


@pytest.mark.parametrize(("name", "layer"), [(MOCO, "base_encoder.blocks.0"), (MAE, "blocks.0")])
def test_the_tanh_form_of_gelu_is_found_between_two_layers(backend, name, layer):
    result = planted(backend, name, "tanh_gelu")
    assert found(result) == (0, "forward", f"{layer}.mlp.fc2/input")
    assert [line.name for _, line in neighbours(result)][2] == f"{layer}.mlp.fc1"


def test_a_loss_without_2_t_is_found(backend):
    result = planted(backend, MOCO, "no_two_t")
    assert found(result) == (0, "loss", "loss")
    assert "2.5 times" in words(result) and "1 / (2 T)" in words(result)


def test_a_momentum_encoder_that_moves_late_is_found(backend):
    after = planted(backend, MOCO, "momentum_after_step")
    step, stage, name = found(after)
    assert (step, stage) == (0, "momentum update") and name.startswith("momentum_encoder.")
    assert "moved after the step" in words(after)
    keys = planted(backend, MOCO, "momentum_after_keys")
    assert found(keys) == (1, "momentum update", "k1")
    assert "before the keys were computed" in words(keys)


def test_weight_decay_on_biases_is_found(backend):
    result = planted(backend, MAE, "decayed_biases")
    step, stage, name = found(result)
    assert stage == "optimiser update" and name.endswith(".bias") and step < 2
    assert "weight decay were +0.05" in words(result)


def test_a_wrong_gradient_is_found_on_the_way_back(backend):
    result = planted(backend, MAE, "wrong_gradient", "blocks.1.norm2")
    assert found(result) == (0, "backward", "blocks.1.norm2/input")
    around = [line for _, line in neighbours(result)]
    assert [line.agrees for line in around] == [True] * 3 + [False] * 4


# ---------------------------------------------------------------- one framework against another
@pytest.fixture(scope="module")
def others(backend, request):
    """Sound traces of another framework that is set up here, from its own interpreter."""
    name = "paddle" if backend == "torch" else "torch"
    here(name, request.config)
    names = (MOCO, MAE, PROBE)
    message = ask(name, [trace.question(subject(recipe)) for recipe in names])
    return {recipe: trace.assemble(subject(recipe), name, answer) for recipe, answer in zip(names, message)}


@pytest.mark.parametrize(
    ("name", "fault", "where"),
    [
        (MAE, ("eps", "blocks.0.norm2"), (0, "forward", "blocks.0.norm2")),
        (MAE, ("transposed", "blocks.1.attn.proj"), (0, "forward", "blocks.1.attn.proj")),
        (MOCO, ("other_position", "mae", "base_encoder"), (0, "forward", "base_encoder.blocks.0.norm1/input")),
        (PROBE, ("batch_norm_momentum",), (0, "batch-norm statistics", "head.0.running_mean")),
        (PROBE, ("biased_variance",), (0, "batch-norm statistics", "head.0.running_var")),
        (MAE, ("tanh_gelu",), (0, "forward", "blocks.0.mlp.fc2/input")),
        (MOCO, ("no_two_t",), (0, "loss", "loss")),
        (MOCO, ("momentum_after_step",), (0, "momentum update", "momentum_encoder.cls_token")),
        (MOCO, ("momentum_after_keys",), (1, "momentum update", "k1")),
        (MAE, ("decayed_biases",), (0, "optimiser update", "patch_embed.proj.bias")),
        (MAE, ("wrong_gradient", "blocks.1.norm2"), (0, "backward", "blocks.1.norm2/input")),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) and isinstance(value[0], str) else "",
)
def test_a_fault_is_found_against_another_framework(backend, others, name, fault, where):
    sane = compare(others[name], sound(backend, name))
    assert sane.first is None, found(sane)
    assert found(compare(others[name], faulty(backend, name, *fault))) == where


# ---------------------------------------------------------------- the command
def test_the_command_shows_the_first_layer_and_its_neighbours(backend, tmp_path, capsys):
    trace.write(tmp_path / "a.safetensors", sound(backend, MAE))
    trace.write(tmp_path / "b.safetensors", faulty(backend, MAE, "eps", "blocks.1.norm1", 1e-3))
    files = [str(tmp_path / f"{name}.safetensors") for name in "ab"]
    assert program.main(["compare", *files]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "first to depart: step 0, forward: blocks.1.norm1" in text
    assert "> blocks.1.norm1" in text and "blocks.1.attn.qkv" in text
    assert program.main(["compare", *files, "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["first"]["name"] == "blocks.1.norm1" and not printed["agree"]
    assert program.main(["compare", files[0], files[0]]) == 0
    equal = re.search(r"within bounds in all of (\d+) comparisons, (\d+) of them without", capsys.readouterr().out)
    assert equal and equal[1] == equal[2]
    assert program.main(["compare", *files, "--stage", "inputs"]) == 0


def test_what_cannot_be_compared_is_a_mistake_of_the_user(backend, tmp_path, capsys):
    trace.write(tmp_path / "moco.safetensors", sound(backend, MOCO))
    trace.write(tmp_path / "mae.safetensors", sound(backend, MAE))
    (tmp_path / "text.safetensors").write_text("no trace")
    whole = (tmp_path / "moco.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    for pair, message in (
        (("moco", "mae"), "different models"),
        (("moco", "text"), "cannot read"),
        (("moco", "cut"), "cannot read"),
        (("moco", "no"), "cannot"),
    ):
        assert program.main(["compare", *(str(tmp_path / f"{name}.safetensors") for name in pair)]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(UserError, match=r"no stage 'nowhere' in them .*backward"):
        compare(sound(backend, MAE), sound(backend, MAE), "nowhere")


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
