"""Layouts: names, shapes and bits of every table in both directions, and layouts found by their keys alone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from core.errors import UserError
from core.inventory import encoder_inventory, inventory
from core.position import resample
from core.spec import MAE, Classifier, MoCo, ModelSpec, ResNet, ViT
from parity_tests import small
from weights import tables
from weights.arrays import Lazy, lazy
from weights.canonical import Architecture, architecture, method_of, parts
from weights.convert import same_bits
from weights.detect import detect
from weights.layout import Layout, read_names, write_name
from weights.layouts import BY_NAME, LAYOUTS, PROJECTS, named, target
from weights.model import Model, Piece, decode, encode
from weights.report import Report

MOCO = MoCo(temperature=0.2, momentum=0.99)
PIXELS = MAE(normalised_pixels=True)
HEAD = Classifier(classes=1000, pooling="token", head_std=0.01)
SIZES = {"small": (384, 12, 12, 16), "base": (768, 12, 12, 16), "large": (1024, 24, 16, 16), "huge": (1280, 32, 16, 14)}


def vit(size: str, **changes) -> ViT:
    width, depth, heads, patch = SIZES[size]
    own = ViT(width=width, depth=depth, heads=heads, patch=(patch, patch), position="moco", first_values="moco")
    return replace(own, **changes)


FULL = {
    "moco small": ModelSpec(encoder=vit("small"), objective=MOCO),
    "moco base": ModelSpec(encoder=vit("base"), objective=MOCO),
    "moco large": ModelSpec(encoder=vit("large"), objective=MOCO),
    "moco conv small": ModelSpec(encoder=vit("small", depth=11, stem="conv"), objective=MOCO),
    "moco resnet50": ModelSpec(encoder=ResNet(depth=50, zero_init_residual=True), objective=MOCO),
    "mae base": ModelSpec(encoder=vit("base"), objective=PIXELS),
    "mae large": ModelSpec(encoder=vit("large"), objective=PIXELS),
    "mae huge": ModelSpec(encoder=vit("huge"), objective=PIXELS),
    "token base": ModelSpec(encoder=vit("base"), objective=HEAD),
    "mean huge": ModelSpec(encoder=vit("huge", image=(448, 448)), objective=replace(HEAD, pooling="mean")),
    "probe base": ModelSpec(encoder=vit("base"), objective=replace(HEAD, head_norm=True)),
    "resnet50": ModelSpec(encoder=ResNet(depth=50, zero_init_residual=False), objective=replace(HEAD, pooling="mean")),
}


def never() -> np.ndarray:
    raise AssertionError("a value was read where names are enough")


def shapes_of(spec: ModelSpec, encoder: bool = False) -> dict[str, Lazy]:
    """Names and shapes without values."""
    found = encoder_inventory(spec.encoder) if encoder else inventory(spec)
    return {p.name: Lazy(p.shape, "int64" if p.role == "counter" else "float32", never) for p in found}


def values_of(spec: ModelSpec) -> dict[str, Lazy]:
    return {name: lazy(array) for name, array in small.arrays(spec).items()}


def model_of(spec: ModelSpec, arrays: dict[str, Lazy]) -> Model:
    """A model as if it had been read under canonical names."""
    heads = spec.encoder.heads if isinstance(spec.encoder, ViT) else None
    decoder = spec.objective.decoder_heads if isinstance(spec.objective, MAE) else None
    pieces = {name: Piece(a.shape, (a,), (name,)) for name, a in arrays.items()}
    shape = architecture({name: a.shape for name, a in arrays.items()})
    return Model(pieces, shape, heads, decoder)


def holds(layout: Layout, model: Model) -> bool:
    shape = model.architecture
    if shape.method not in layout.methods or layout.family_for(model.pieces, shape.family) is None:
        return False
    family = layout.family_for(model.pieces, shape.family)
    return all(write_name(layout, str(family), n) for n in model.pieces if layout.counters or "num_batches" not in n)


def tree_of(layout: Layout, state: dict[str, Lazy]) -> dict:
    return {layout.container: state} if layout.container else dict(state)


def back(layout: Layout, state: dict[str, Lazy], model: Model) -> dict[str, Lazy]:
    candidate = detect(tree_of(layout, state), "", (layout,))
    found = decode(candidate, Report())
    found.heads, found.decoder_heads = model.heads, model.decoder_heads
    return found.arrays()


# ---------------------------------------------------------------- both directions
PAIRS = [
    (layout.name, name)
    for layout in LAYOUTS
    for name, spec in small.MODELS.items()
    if "resnet50" not in name and holds(layout, model_of(spec, shapes_of(spec)))
]


def test_every_layout_holds_something_small() -> None:
    assert {layout for layout, _ in PAIRS} == set(BY_NAME)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_there_and_back_gives_the_same_bits(name: str, kind: str) -> None:
    layout, arrays = BY_NAME[name], values_of(small.MODELS[kind])
    model = model_of(small.MODELS[kind], arrays)
    again = back(layout, encode(model, layout, Report()), model)
    assert list(again) == list(arrays)  # the originals' order, too
    for one, array in arrays.items():
        if layout.counters or not one.endswith("num_batches_tracked"):
            assert same_bits(array, again[one]), one
        else:
            assert again[one].read() == 0 and again[one].dtype == "int64"


FULL_PAIRS = [
    (layout.name, kind)
    for layout in LAYOUTS
    for kind, spec in FULL.items()
    if holds(layout, model_of(spec, shapes_of(spec)))
]


@pytest.mark.parametrize(("name", "kind"), FULL_PAIRS)
def test_full_size_names_are_recognised_and_come_back(name: str, kind: str) -> None:
    """Found among all layouts without a value read, unless another layout really reads the keys in another way."""
    layout, spec = BY_NAME[name], FULL[kind]
    arrays = shapes_of(spec)
    state = encode(model_of(spec, arrays), layout, Report())
    if name.startswith("libai") and spec.objective.kind == "classifier":
        with pytest.raises(UserError, match="libai-vit.*libai-mae-finetune"):
            detect(tree_of(layout, state), "oneflow")
        found = detect(tree_of(layout, state), "oneflow", (layout,))
    else:
        found = detect(tree_of(layout, state), layout.framework)
        assert layout in (found.layout, *found.same)
    assert not (found.names.unknown or found.missing or found.extra or found.wrong)
    want = {n: a.shape for n, a in arrays.items() if layout.counters or not n.endswith("num_batches_tracked")}
    assert found.shapes == want
    assert found.architecture == replace(architecture(want), parts=found.architecture.parts)


@pytest.mark.parametrize("layout", [one for one in LAYOUTS if "encoder" in one.methods], ids=lambda one: one.name)
def test_bare_encoders_come_back(layout: Layout) -> None:
    arrays = {p.name: values_of(small.MODELS["mae"])[p.name] for p in encoder_inventory(small.MAE_VIT)}
    model = model_of(small.MODELS["mae"], arrays)
    again = back(layout, encode(model, layout, Report()), model)
    assert list(again) == list(arrays) and all(same_bits(a, again[n]) for n, a in arrays.items())


# ---------------------------------------------------------------- what the originals' files contain
def test_numbers_of_keys() -> None:
    def count(kind: str, layout: str, encoder: bool = False) -> int:
        return len(encode(model_of(FULL[kind], shapes_of(FULL[kind], encoder)), BY_NAME[layout], Report()))

    assert count("moco base", "moco-v3") == count("moco small", "moco-v3") == 342
    assert count("moco conv small", "moco-v3") == 366
    assert count("moco base", "passl-moco") == 334
    assert count("moco base", "deit", True) == count("moco base", "passl-deit", True) == 150
    assert [count(f"mae {size}", "mae") for size in ("base", "large", "huge")] == [254, 398, 494]
    assert count("resnet50", "timm") == 320
    assert count("token base", "passl-deit") == 152
    # LiBai: no counters, but a weight and a bias in each of the three last norms
    assert count("moco base", "libai-moco") == 334 + 6
    assert count("moco base", "mmpretrain-moco") == 342 + 1


def test_passl_lists_the_position_table_first_and_turns_matrices() -> None:
    state = encode(model_of(FULL["moco base"], shapes_of(FULL["moco base"])), BY_NAME["passl-moco"], Report())
    shapes = {name: array.shape for name, array in state.items()}
    assert list(shapes)[:3] == [f"base_encoder.{n}" for n in ("pos_embed", "cls_token", "patch_embed.proj.weight")]
    assert shapes["base_encoder.pos_embed"] == (1, 197, 768)
    assert shapes["base_encoder.patch_embed.proj.weight"] == (768, 3, 16, 16)
    assert shapes["momentum_encoder.blocks.11.attn.qkv.weight"] == (768, 2304)
    assert shapes["base_encoder.blocks.0.mlp.fc2.weight"] == (3072, 768)
    assert [shapes[f"base_encoder.head.{k}.weight"] for k in (0, 3, 6)] == [(768, 4096), (4096, 4096), (4096, 256)]
    assert shapes["base_encoder.head.1._mean"] == shapes["base_encoder.head.4._variance"] == (4096,)
    assert shapes["predictor.0.weight"] == (256, 4096) and shapes["predictor.4._mean"] == (256,)
    assert sum(math.prod(shape) for shape in shapes.values()) == 215_720_960
    assert not any("num_batches" in name or name.startswith("module.") for name in shapes)


TABLE = """
blocks.3.norm1.weight    layers.3.ln1.weight            blocks.3.norm1.weight    blocks.3.input_layernorm.weight
blocks.3.norm2.bias      layers.3.ln2.bias              blocks.3.norm2.bias      blocks.3.post_attention_layernorm.bias
blocks.3.attn.qkv.weight layers.3.attn.qkv.weight       blocks.3.attn.qkv.weight blocks.3.self_attention.query_key_value.weight
blocks.3.attn.proj.bias  layers.3.attn.proj.bias        blocks.3.attn.proj.bias  blocks.3.self_attention.dense.bias
blocks.3.mlp.fc1.weight  layers.3.ffn.layers.0.0.weight blocks.3.mlp.fc1.weight  blocks.3.mlp.dense_h_to_4h.weight
blocks.3.mlp.fc2.bias    layers.3.ffn.layers.1.bias     blocks.3.mlp.fc2.bias    blocks.3.mlp.dense_4h_to_h.bias
patch_embed.proj.weight  patch_embed.projection.weight  patch_embed.proj.weight  patch_embed.proj.weight
pos_embed                pos_embed                      pos_embed                pos_embed
norm.weight              ln1.weight                     norm.weight              norm.weight
"""


@pytest.mark.parametrize("line", TABLE.strip().splitlines())
def test_names_beside_each_other(line: str) -> None:
    timm, mm, paddle, libai = line.split()
    base = "base_encoder."

    def name(layout: str, canonical: str) -> str:
        hit = write_name(BY_NAME[layout], "vit", canonical)
        assert hit is not None
        return hit[1][0]

    assert name("timm", timm) == name("deit", timm) == name("mae", timm) == timm
    assert name("moco-v3", base + timm) == name("passl-moco", base + timm) == base + timm
    assert name("mmpretrain-moco", base + timm) == name("mmpretrain-cls", timm) == f"backbone.{mm}"
    assert name("mmpretrain-moco", "momentum_encoder." + timm) == f"momentum_encoder.module.0.{mm}"
    assert name("passl-deit", timm) == paddle
    assert name("libai-vit", timm) == name("libai-mae", timm) == libai
    assert name("libai-moco", base + timm) == base + libai


NAMES = {
    "mmpretrain-moco": {
        "base_encoder.head.6.weight": "neck.fc2.weight",
        "base_encoder.head.4.running_var": "neck.bn1.running_var",
        "momentum_encoder.head.7.running_mean": "momentum_encoder.module.1.bn2.running_mean",
        "predictor.3.weight": "head.predictor.fc1.weight",
        "predictor.4.num_batches_tracked": "head.predictor.bn1.num_batches_tracked",
    },
    "mmpretrain-mae": {
        "mask_token": "neck.mask_token",
        "decoder_blocks.7.norm2.weight": "neck.decoder_blocks.7.ln2.weight",
        "decoder_blocks.0.mlp.fc1.bias": "neck.decoder_blocks.0.ffn.layers.0.0.bias",
        "decoder_norm.bias": "neck.ln1.bias",
        "decoder_pred.weight": "neck.decoder_pred.weight",
    },
    "mmpretrain-cls": {"head.weight": "head.layers.head.weight", "norm.bias": "backbone.ln1.bias"},
    "libai-mae": {"decoder_blocks.2.attn.qkv.bias": "decoder_blocks.2.self_attention.query_key_value.bias"},
    "libai-mae-finetune": {"fc_norm.weight": "norm.weight", "head.bias": "head.bias"},
    "passl-moco": {"base_encoder.head.7.running_var": "base_encoder.head.7._variance"},
    "hf-vit": {
        "cls_token": "vit.embeddings.cls_token",
        "pos_embed": "vit.embeddings.position_embeddings",
        "patch_embed.proj.bias": "vit.embeddings.patch_embeddings.projection.bias",
        "blocks.5.norm1.weight": "vit.encoder.layer.5.layernorm_before.weight",
        "blocks.5.attn.proj.weight": "vit.encoder.layer.5.attention.output.dense.weight",
        "blocks.5.mlp.fc2.bias": "vit.encoder.layer.5.output.dense.bias",
        "norm.bias": "vit.layernorm.bias",
        "head.weight": "classifier.weight",
    },
    "hf-vit-mae": {
        "decoder_blocks.1.mlp.fc1.weight": "decoder.decoder_layers.1.intermediate.dense.weight",
        "decoder_pos_embed": "decoder.decoder_pos_embed",
    },
    "hf-vit-mae-5": {
        "blocks.5.attn.proj.weight": "vit.layers.5.attention.o_proj.weight",
        "decoder_blocks.1.mlp.fc1.weight": "decoder.decoder_layers.1.mlp.fc1.weight",
    },
}


@pytest.mark.parametrize(
    ("layout", "canonical", "foreign"), [(k, *pair) for k, v in NAMES.items() for pair in v.items()]
)
def test_further_names(layout: str, canonical: str, foreign: str) -> None:
    hit = write_name(BY_NAME[layout], "vit", canonical)
    assert hit is not None and hit[1] == (foreign,)
    again = read_names(BY_NAME[layout], "vit", [foreign])
    assert list(again.found) == [canonical]


def test_query_key_and_value_stand_apart_in_hugging_face_files() -> None:
    hit = write_name(BY_NAME["hf-vit"], "vit", "blocks.0.attn.qkv.bias")
    assert hit is not None
    assert hit[1] == tuple(f"vit.encoder.layer.0.attention.attention.{w}.bias" for w in ("query", "key", "value"))
    hit = write_name(BY_NAME["hf-vit-5"], "vit", "blocks.0.attn.qkv.weight")
    assert hit is not None and hit[1][0] == "vit.layers.0.attention.q_proj.weight"


def test_rows_by_head_as_libai_has_them() -> None:
    """The worked example of width 8 and 2 heads."""
    spec = ModelSpec(encoder=replace(small.VIT, width=8, heads=2), objective=HEAD)
    arrays = values_of(spec)
    rows = np.arange(24, dtype=np.float32)
    arrays["blocks.0.attn.qkv.bias"] = lazy(rows)
    arrays["blocks.0.attn.qkv.weight"] = lazy(np.repeat(rows[:, None], 8, axis=1))
    model = model_of(spec, arrays)
    order = [*range(4), *range(8, 12), *range(16, 20), *range(4, 8), *range(12, 16), *range(20, 24)]
    for name, turn in (("libai-vit", np.asarray), ("libai-vit-0.1", np.transpose)):
        state = encode(model, BY_NAME[name], Report())
        at = "blocks.0.self_attention.query_key_value"
        assert state[f"{at}.bias"].read().tolist() == order
        assert turn(state[f"{at}.weight"].read())[:, 0].tolist() == order


def test_square_matrices_turn_by_role() -> None:
    spec = small.MODELS["moco-vit"]
    arrays = values_of(spec)
    for layout, names in {
        "passl-moco": {"head.3.weight": "head.3.weight", "blocks.1.attn.proj.weight": "blocks.1.attn.proj.weight"},
        "libai-moco-0.1": {"blocks.1.attn.proj.weight": "blocks.1.self_attention.dense.weight"},
    }.items():
        state = encode(model_of(spec, arrays), BY_NAME[layout], Report())
        for canonical, name in names.items():
            own, found = arrays[f"base_encoder.{canonical}"].read(), state[f"base_encoder.{name}"].read()
            assert own.shape[0] == own.shape[1] and np.array_equal(found, own.T) and not np.array_equal(found, own)


def test_a_square_position_table_or_token_is_never_turned() -> None:
    """197 patches of width 197 and the like: embeddings stay as they are."""
    spec = ModelSpec(encoder=replace(small.VIT, width=8, heads=2, image=(8, 28)), objective=HEAD)
    arrays = values_of(spec)
    assert arrays["pos_embed"].shape == (1, 8, 8)
    state = encode(model_of(spec, arrays), BY_NAME["passl-deit"], Report())
    assert same_bits(state["pos_embed"], arrays["pos_embed"])


# ---------------------------------------------------------------- heads are never guessed
def test_heads_are_asked_for() -> None:
    spec = small.MODELS["mae"]
    for heads, decoder, option in ((None, 4, "--heads"), (8, None, "--decoder-heads")):
        model = model_of(spec, values_of(spec))
        model.heads, model.decoder_heads = heads, decoder
        with pytest.raises(UserError, match=option):
            encode(model, BY_NAME["libai-mae"], Report())
        encode(model, BY_NAME["passl-mae"], Report())  # which does not need them


def test_heads_are_not_asked_for_between_layouts_that_agree() -> None:
    spec = small.MODELS["moco-vit"]
    model = model_of(spec, values_of(spec))
    state = encode(model, BY_NAME["libai-moco"], Report())
    found = decode(detect(tree_of(BY_NAME["libai-moco"], state)), Report())
    assert found.heads is None
    report = Report()
    other = encode(found, BY_NAME["libai-moco-0.1"], report)
    assert report.counts()["reordered"] == 0 and report.counts()["transposed"] == 32
    again = back(BY_NAME["libai-moco-0.1"], other, model)
    assert all(same_bits(again[n], a) for n, a in values_of(spec).items() if not n.endswith("num_batches_tracked"))


def test_wrong_heads_are_refused_and_other_heads_give_other_rows() -> None:
    spec = small.MODELS["finetune-token"]
    model = model_of(spec, values_of(spec))
    state = encode(model, BY_NAME["libai-vit"], Report())
    model.heads = 4
    other = encode(model, BY_NAME["libai-vit"], Report())
    name = "blocks.0.self_attention.query_key_value.weight"
    assert not same_bits(state[name], other[name])
    model.heads = 7
    with pytest.raises(UserError, match="7 heads"):
        encode(model, BY_NAME["libai-vit"], Report())


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
    with pytest.raises(UserError, match="predictor.4.weight.*--only encoder"):
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
    assert detect({"model": arrays}, "torch", words=["vit_base_patch16"]).layout.name == "mae-finetune"
    assert detect(arrays, "torch").layout.name == "timm"
    assert (
        detect({"state_dict": {f"module.{n}": a for n, a in arrays.items()}}, "torch").layout.name == "moco-v3-linear"
    )
    assert detect(arrays, "safetensors", own=True).layout.name == "triport"
    # with averaged patches the names are MAE's, but DeiT's table reads them just as well
    assert "mae-finetune" in [one.name for one in detect({"model": plain("finetune-mean")}, "torch").same]


def test_turned_matrices_tell_passl_from_timm() -> None:
    spec = small.MODELS["finetune-token"]
    state = encode(model_of(spec, plain("finetune-token")), BY_NAME["passl-deit"], Report())
    assert detect(state, "paddle").layout.name == "passl-deit"
    assert detect(state, "torch").layout.name == "passl-deit"  # whatever the file is called
    assert detect(plain("finetune-token"), "paddle").layout.name == "timm"


def test_one_lost_and_one_strange_array_are_told() -> None:
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
    with pytest.raises(UserError, match="no table knows 'encoder.w'"):
        detect({"encoder.w": lazy(np.zeros(2))}, where="x.pth")
    few = {"cls_token": plain("mae")["cls_token"], **{f"other.{i}": lazy(np.zeros(2)) for i in range(9)}}
    with pytest.raises(UserError, match=r"nearest is '[\w-]+', but it does not know 'other.0'"):
        detect(few)
    for tree in ({}, {"state_dict": {}}, {"epoch": 3}, [], None, 7, {"model": {"a": 1}}):
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


# ---------------------------------------------------------------- words
def test_projects_mean_the_layout_that_holds_the_model() -> None:
    assert target("libai", "moco").name == "libai-moco" and target("libai-0.1", "mae").name == "libai-mae-0.1"
    assert target("libai", "classifier", pooled=True).name == "libai-mae-finetune"
    assert target("libai", "classifier").name == target("libai", "encoder").name == "libai-vit"
    assert [target("passl", m).name for m in ("moco", "mae", "encoder")] == ["passl-moco", "passl-mae", "passl-mae"]
    assert target("mmpretrain", "classifier").name == "mmpretrain-cls"
    assert target("moco-v3", "classifier").name == "moco-v3-linear" and target("mae", "mae").name == "mae"
    assert target("torchvision", "classifier").name == "timm"
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
    assert (found.width, found.family) == (getattr(spec.encoder, "width", found.width), spec.encoder.kind)
    assert found.depth == spec.encoder.depth and found.heads is None


def test_hidden_widths_survive_a_ratio_that_is_no_binary_fraction() -> None:
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


# ---------------------------------------------------------------- position tables
@pytest.mark.parametrize(
    ("old", "new"), [((14, 14), (16, 16)), ((16, 16), (14, 14)), ((14, 14), (28, 28)), ((3, 5), (7, 2))]
)
def test_position_tables_are_resampled_as_pytorch_does(old: tuple[int, int], new: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    table = np.random.default_rng(0).standard_normal((1, 1 + old[0] * old[1], 24)).astype(np.float32)
    patches = torch.from_numpy(table[:, 1:]).reshape(1, *old, 24).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(patches.double(), size=new, mode="bicubic", align_corners=False)
    ours = resample(table, old, new)
    assert np.array_equal(ours[:, 0], table[:, 0])
    assert np.abs(ours[0, 1:] - theirs.permute(0, 2, 3, 1).reshape(-1, 24).numpy()).max() < 1e-6
