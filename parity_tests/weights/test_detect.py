"""Layouts found by their keys alone: what is read alike, what is lost, strange, hostile or ambiguous; architectures."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from triport.core.errors import UserError
from triport.core.model.inventory import feature_width, inventory
from triport.core.spec import ModelSpec
from triport.parity_tests.fixtures.foreign import HEAD, model_of, never, values_of
from triport.parity_tests.tool import small
from triport.weights.arrays import Lazy, lazy
from triport.weights.canonical import Architecture, architecture, method_of, parts
from triport.weights.layouts import tables
from triport.weights.layouts.catalogue import BY_NAME, LAYOUTS, PROJECTS, named, target
from triport.weights.layouts.layout import Layout
from triport.weights.model.detect import detect
from triport.weights.model.model import decode, encode
from triport.weights.model.report import Report
from triport.weights.model.states import states


# ---------------------------------------------------------------- constants
def passl_state(**more: np.ndarray) -> dict[str, Lazy]:
    spec = small.MODELS["moco-vit"]
    state = encode(model_of(spec, values_of(spec)), BY_NAME["passl-moco"], Report())
    return state | {name.replace("__", "."): lazy(array) for name, array in more.items()}


def test_last_norms_of_sync_bn_are_dropped_if_nothing_trained_them() -> None:
    state = passl_state(
        base_encoder__head__7__weight=np.ones(16, np.float32), base_encoder__head__7__bias=np.zeros(16, np.float32)
    )
    report = Report()
    found = decode(detect({"state_dict": state}), report)
    assert {n for n, why in report.dropped if why == "constant"} == {
        "base_encoder.head.7.weight",
        "base_encoder.head.7.bias",
    }
    assert "base_encoder.head.7.weight" not in found.pieces


def test_trained_last_norms_are_an_error_unless_the_encoder_is_all_that_is_wanted() -> None:
    state = passl_state(predictor__4__weight=np.full(16, 1.5, np.float32))
    candidate = detect({"state_dict": state})
    with pytest.raises(UserError, match=r"predictor.4.weight.*--only encoder"):
        decode(candidate, Report())
    assert "cls_token" in decode(candidate, Report(), "encoder").pieces


def test_libai_gets_constants_and_mmpretrain_its_count() -> None:
    spec, report = small.MODELS["moco-vit"], Report()
    state = encode(model_of(spec, values_of(spec)), BY_NAME["libai-moco"], report)
    assert np.array_equal(state["momentum_encoder.head.7.weight"].read(), np.ones(16, np.float32))
    assert np.array_equal(state["predictor.4.bias"].read(), np.zeros(16, np.float32))
    assert len(report.made) == 6
    state = encode(model_of(spec, values_of(spec)), BY_NAME["mmpretrain-moco"], Report())
    assert state["momentum_encoder.steps"].read() == 0


def test_counters_of_libai_files_are_used_where_they_are_there() -> None:
    spec = small.MODELS["moco-vit"]
    state = encode(model_of(spec, values_of(spec)), BY_NAME["libai-moco"], Report())
    state["predictor.1.num_batches_tracked"] = lazy(np.array(41, np.int64))
    report = Report()
    found = decode(detect(state), report)
    assert found.pieces["predictor.1.num_batches_tracked"].arrays[0].read() == 41
    assert len(report.made) == 7


def test_a_resnet_that_moco_converted_for_deit_keeps_no_projector() -> None:
    spec = small.MODELS["moco-resnet18"]
    base = {n[13:]: a for n, a in values_of(spec).items() if n.startswith("base_encoder.")}
    report = Report()
    found = decode(detect({"model": base}, "torch"), report)
    assert found.architecture.method == "encoder" and len(report.dropped) == 10
    assert not report.missing and not report.unknown


# ---------------------------------------------------------------- found by keys
def plain(kind: str = "moco-vit") -> dict[str, Lazy]:
    return values_of(small.MODELS[kind])


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_taken_off(prefix: str) -> None:
    found = detect({"state_dict": {prefix + n: a for n, a in plain().items()}}, "torch")
    assert found.layout.name == ("moco-v3" if prefix else "moco-v3-bare") and found.state.prefix == prefix
    assert not found.faults


def test_containers_and_words_choose_among_layouts_that_read_alike() -> None:
    arrays = plain("finetune-token")
    assert detect({"model": arrays}, "torch").layout.name == "deit"
    assert detect({"model": arrays}, "torch", archs=["vit_base_patch16"]).layout.name == "mae-finetune"
    assert detect(arrays, "torch").layout.name == "timm"
    assert (
        detect({"state_dict": {f"module.{n}": a for n, a in arrays.items()}}, "torch").layout.name == "moco-v3-linear"
    )
    assert detect(arrays, "safetensors", own=True).layout.name == "triport"
    trained = {"state_dict": arrays}  # by timm's own train.py, or by moco-v3 on one device: only the word tells
    assert detect(trained, "torch", archs=["vit_small_patch16_224"]).layout.name == "timm"
    assert detect(trained, "torch", archs=["vit_small"]).layout.name == "moco-v3-linear"
    assert detect({"model": arrays}, "torch", archs=["deit_small_patch16_224"]).layout.name == "deit"
    assert detect({"state_dict": plain("probe-resnet18")}, "torch", archs=["resnet50"]).layout.name == "moco-v3-linear"
    # with averaged patches the names are MAE's, but DeiT's table reads them just as well
    assert "mae-finetune" in [one.name for one in detect({"model": plain("finetune-mean")}, "torch").same]


def test_the_decoder_as_transformers_5_saves_it() -> None:
    """Its save_pretrained writes "decoder_encoder.layer" for "decoder_layers", and reads that back."""
    spec = small.MODELS["mae"]
    state = encode(model_of(spec, plain("mae")), BY_NAME["hf-vit-mae"], Report())
    saved = {n.replace("decoder_layers", "decoder_encoder.layer"): a for n, a in state.items()}
    found = detect(saved, "safetensors")
    assert found.layout.name == "hf-vit-mae" and not found.faults and saved != state
    assert list(decode(found, Report()).arrays()) == list(plain("mae"))


def test_transposed_matrices_tell_passl_from_timm() -> None:
    spec = small.MODELS["finetune-token"]
    state = encode(model_of(spec, plain("finetune-token")), BY_NAME["passl-deit"], Report())
    assert detect(state, "paddle").layout.name == "passl-deit"
    assert detect(state, "torch").layout.name == "passl-deit"  # whatever the file is called
    assert detect(plain("finetune-token"), "paddle").layout.name == "timm"


def test_one_lost_and_one_strange_array_are_reported() -> None:
    arrays = plain()
    del arrays["predictor.3.weight"]
    arrays["base_encoder.extra"] = lazy(np.zeros(3, np.float32))
    report = Report()
    decode(detect({"state_dict": arrays}, "torch"), report)
    assert report.missing == ["predictor.3.weight"] and report.unknown == ["base_encoder.extra"]
    assert "predictor.3.weight" in report.faults() and "base_encoder.extra" in report.faults()


def test_a_lost_block_is_missing_not_a_smaller_model() -> None:
    arrays = {n: a for n, a in plain("mae").items() if not n.startswith("blocks.1.")}
    report = Report()
    decode(detect({"model": arrays}, "torch"), report)
    assert len(report.missing) == 12 and all(n.startswith("blocks.1.") for n in report.missing)


def test_a_wrong_shape_is_an_error_that_names_it() -> None:
    arrays = plain()
    arrays["base_encoder.blocks.2.mlp.fc2.weight"] = lazy(np.zeros((32, 99), np.float32))
    with pytest.raises(UserError, match=r"blocks.2.mlp.fc2.weight.*\(32, 99\).*\(32, 128\)"):
        detect({"state_dict": arrays}, "torch")


def test_nothing_known_names_the_nearest_layout_and_the_first_difference() -> None:
    with pytest.raises(UserError, match=r"no table knows 'encoder.w'"):
        detect({"encoder.w": lazy(np.zeros(2))}, where="x.pth")
    few = {"cls_token": plain("mae")["cls_token"], **{f"other.{i}": lazy(np.zeros(2)) for i in range(9)}}
    with pytest.raises(UserError, match=r"nearest is '[\w-]+', but it does not know 'other.0'"):
        detect(few)
    empty: list[object] = [{}, {"state_dict": {}}, {"epoch": 3}, [], None, 7, {"model": {"a": 1}}]
    for tree in empty:
        with pytest.raises(UserError, match="no named arrays"):
            detect(tree)


def test_libai_classifiers_may_be_two_things() -> None:
    spec = small.MODELS["finetune-token"]
    state = encode(model_of(spec, plain("finetune-token")), BY_NAME["libai-vit"], Report())
    with pytest.raises(UserError, match="libai-vit, libai-mae-finetune: say which with --from"):
        detect({"model": state}, "oneflow")
    assert "norm.weight" in detect({"model": state}, "oneflow", named("libai-vit")).shapes
    assert "fc_norm.weight" in detect({"model": state}, "oneflow", named("libai-mae-finetune")).shapes


HOSTILE = [
    "blocks.-1.norm1.weight",
    "blocks.01.norm1.weight",
    "blocks.1000.norm1.weight",
    "blocks.99999999999999999999.norm1.weight",
    "blocks.\u0661.norm1.weight",
    "blocks.#.norm1.weight",
    "blocks.1.norm1.weight\n",
    "blocks..norm1.weight",
    "blocks.1.norm1.weight.",
    ".cls_token",
    "../../etc/passwd",
    "nan",
    "",
    "." * 5000,
    "module.",
    "{i}",
    "blocks.{i}.norm1.weight",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_unknown(name: str) -> None:
    arrays = {name: lazy(np.zeros(32, np.float32)), **plain("mae")}
    report = Report()
    decode(detect({"model": arrays}, "torch"), report)
    assert report.unknown == [name]


def test_hostile_shapes_end_in_one_line() -> None:
    for name, shape in {
        "cls_token": (),
        "pos_embed": (1,),
        "patch_embed.proj.weight": (32, 3, 0, 4),
        "blocks.0.mlp.fc1.bias": (0,),
        "mask_token": (1, 1),
    }.items():
        arrays = plain("mae") | {name: Lazy(shape, "float32", never)}
        with pytest.raises(UserError) as caught:
            detect({"model": arrays}, "torch")
        assert "\n" not in str(caught.value)


def test_a_table_of_endless_patches_is_only_a_number() -> None:
    arrays = plain("mae") | {"pos_embed": Lazy((1, 1 + 10**9, 32), "float32", never)}
    with pytest.raises(UserError, match="decoder_pos_embed"):
        detect({"model": arrays}, "torch")


def test_many_unknown_names_take_no_time() -> None:
    arrays = {f"a.{i}.b": Lazy((1,), "float32", never) for i in range(20_000)}
    with pytest.raises(UserError, match="no table knows"):
        detect(arrays)
    with pytest.raises(UserError, match="holds 20001 named arrays, more than any model"):
        detect({"state_dict": {**arrays, "b": arrays["a.0.b"]}})


def test_prefixes_without_end_are_not_taken_off() -> None:
    arrays = {f"{'module.' * 580}a{i}": Lazy((1,), "float32", never) for i in range(3)}
    assert states(arrays)[0].prefix == "module." * 4


# ---------------------------------------------------------------- words
def test_projects_mean_the_layout_that_holds_the_model() -> None:
    assert target("libai", "moco").name == "libai-moco" and target("libai-0.1", "mae").name == "libai-mae-0.1"
    assert target("libai", "classifier", pooled=True).name == "libai-mae-finetune"
    assert target("libai", "classifier").name == target("libai", "encoder").name == "libai-vit"
    assert [target("passl", m).name for m in ("moco", "mae", "encoder")] == ["passl-moco", "passl-mae", "passl-deit"]
    assert target("mmpretrain", "classifier").name == "mmpretrain-cls"
    assert target("moco-v3", "classifier").name == "moco-v3-linear" and target("mae", "mae").name == "mae"
    assert target("torchvision", "classifier").name == "torchvision"
    for names in PROJECTS.values():
        assert all(name in BY_NAME for name in names)
    with pytest.raises(UserError, match="Did you mean 'moco-v3'"):
        named("moco-v33")


def test_parts_and_methods_by_name() -> None:
    assert parts(plain()) == ("encoder", "projector", "momentum encoder", "momentum projector", "predictor")
    assert method_of(plain("mae")) == "mae" and parts(plain("mae")) == ("encoder", "decoder")
    assert parts(plain("finetune-mean")) == ("encoder", "head") and method_of(plain("probe-mae")) == "classifier"


@pytest.mark.parametrize("kind", small.MODELS)
def test_architectures_are_read_off_shapes(kind: str) -> None:
    spec = small.MODELS[kind]
    found: Architecture = architecture({p.name: p.shape for p in inventory(spec)})
    expected = {p.name: p.shape for p in inventory(spec)}
    assert {n: p.shape for n, p in found.expected().items()} == expected and list(found.expected()) == list(expected)
    assert (found.width, found.family) == (feature_width(spec.encoder), spec.encoder.kind)
    assert found.depth == spec.encoder.depth and found.heads is None


def test_hidden_widths_survive_a_ratio_that_is_not_a_binary_fraction() -> None:
    for hidden in range(1, 400):
        spec = ModelSpec(
            encoder=replace(small.VIT, width=92, heads=4, mlp_ratio=math.nextafter(hidden / 92, 9)), objective=HEAD
        )
        shapes = {p.name: p.shape for p in inventory(spec)}
        again = architecture(shapes).expected()
        assert again["blocks.0.mlp.fc1.bias"].shape == shapes["blocks.0.mlp.fc1.bias"]


# ---------------------------------------------------------------- the grammar
def test_tables_refuse_columns_that_do_not_answer_each_other() -> None:
    with pytest.raises(ValueError, match="answer"):
        tables.table("head.{0|3}.weight neck.fc0.weight linear")


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda one: one.name)
def test_no_table_names_anything_twice(layout: Layout) -> None:
    for family, rules in layout.families.items():
        foreign = [name for rule in rules for name in rule.foreign]
        canonical = [rule.canonical for rule in rules if rule.canonical]
        assert len(set(foreign)) == len(foreign), family
        assert len(set(canonical)) == len(canonical), family
