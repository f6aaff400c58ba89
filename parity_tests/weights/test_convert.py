"""Conversions of whole files: chains, forms, choices, provenance, what is refused, the command line."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triport.core.errors import UserError
from triport.core.model.inventory import encoder_inventory
from triport.core.spec import Recipe
from triport.core.spec import recipe as recipes
from triport.parity_tests.fixtures.bicubic import resampled
from triport.parity_tests.tool import small
from triport.weights.arrays import File, lazy
from triport.weights.commands import deliver as module
from triport.weights.commands.command import main
from triport.weights.commands.convert import convert
from triport.weights.commands.load import load_weights
from triport.weights.files import files
from triport.weights.model import provenance

MOCO = small.arrays(small.MODELS["moco-vit"])
ENCODER = [p.name for p in encoder_inventory(small.VIT)]


def save(path: Path, kind: str = "moco-vit", **more: Any) -> Path:
    """A checkpoint as the original would write it."""
    arrays = small.arrays(small.MODELS[kind])
    if kind.startswith("moco"):
        tree = {"epoch": 7, "arch": "vit_other", "state_dict": {f"module.{n}": a for n, a in arrays.items()}}
    else:
        tree = {"model": arrays}
    files.write(path, {**tree, **more}, "torch")
    return path


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> bool:
    return list(found) == list(wanted) and all(
        a.dtype == found[n].dtype and a.shape == found[n].shape and a.tobytes() == found[n].tobytes()
        for n, a in wanted.items()
    )


def uncounted(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {n: np.zeros_like(a) if n.endswith("num_batches_tracked") else a for n, a in arrays.items()}


# ---------------------------------------------------------------- chains and forms
def test_a_chain_through_all_frameworks_returns_the_same_bits(tmp_path: Path) -> None:
    save(tmp_path / "a.pth.tar")
    report = convert(tmp_path / "a.pth.tar", tmp_path / "b.pd", heads=8)  # noted, so nobody has to say it again
    assert report.counts()["transposed"] == 32 and report.to_layout == "passl-moco"
    report = convert(tmp_path / "b.pd", tmp_path / "c")
    made = [name for name, _ in report.made]
    assert len(made) == 6 and not any(name.endswith("num_batches_tracked") for name in made)
    assert report.counts()["reordered"] == 12 and report.to_layout == "libai-moco" and report.heads == 8
    convert(tmp_path / "c", tmp_path / "back.pth.tar")
    back = files.read(tmp_path / "back.pth.tar").tree["state_dict"]
    assert same({n[7:]: a.read() for n, a in back.items()}, MOCO)  # counters too, which neither has a place for
    report = convert(tmp_path / "c", tmp_path / "d.pth", only="encoder")
    assert report.to_layout == "deit" and len(report.carried) == len(ENCODER)
    convert(tmp_path / "d.pth", tmp_path / "e.pth.tar", to="moco-v3")
    state = files.read(tmp_path / "e.pth.tar").tree["state_dict"]
    assert list(state) == [f"module.base_encoder.{n}" for n in ENCODER]
    for name in ENCODER:
        assert state[f"module.base_encoder.{name}"].read().tobytes() == MOCO[f"base_encoder.{name}"].tobytes()


@pytest.mark.parametrize("target", ["t.pth", "t.pd", "t.safetensors", "t.npz", "t", "t.safetensors.index.json"])
@pytest.mark.parametrize("kind", ["moco-vit", "mae", "finetune-mean"])
def test_every_form_comes_back(tmp_path: Path, kind: str, target: str) -> None:
    source = save(tmp_path / "a.pth", kind)
    convert(source, tmp_path / target, heads=8, decoder_heads=4)
    found = load_weights(tmp_path / target)  # LiBai calls norm and fc_norm alike: the note beside the file tells
    assert same(found, small.arrays(small.MODELS[kind]))


@pytest.mark.parametrize("kind", ["moco-conv", "moco-resnet18", "probe-mae", "probe-resnet18", "finetune-token"])
def test_what_paddle_holds_comes_back(tmp_path: Path, kind: str) -> None:
    report = convert(save(tmp_path / "a.pth", kind), tmp_path / "b.pd")
    assert same(load_weights(tmp_path / "b.pd"), small.arrays(small.MODELS[kind]))
    (tmp_path / "b.pd.json").unlink()  # which noted the counters that Paddle has no place for
    assert same(load_weights(tmp_path / "b.pd"), uncounted(small.arrays(small.MODELS[kind])))
    assert len(report.dropped) == sum(n.endswith("tracked") for n in small.arrays(small.MODELS[kind]))


def test_counters_that_differ_are_not_noted(tmp_path: Path) -> None:
    arrays = {**MOCO, "predictor.1.num_batches_tracked": np.array(9, np.int64)}
    files.write(tmp_path / "a.pth", {"epoch": 1, "arch": "vit_other", "state_dict": arrays}, "torch")
    convert(tmp_path / "a.pth", tmp_path / "b.pd")
    assert same(load_weights(tmp_path / "b.pd"), uncounted(MOCO))


def test_pytorch_reads_what_is_written(torch: Any, tmp_path: Path) -> None:
    convert(save(tmp_path / "a.pth"), tmp_path / "b.npz")
    convert(tmp_path / "b.npz", tmp_path / "c.pth.tar")
    tree = torch.load(tmp_path / "c.pth.tar", weights_only=True)
    assert tree["epoch"] == 7 and set(tree) == {"epoch", "arch", "state_dict"}
    assert same({n[7:]: t.numpy() for n, t in tree["state_dict"].items()}, MOCO)


DEFAULTS = [
    ("moco-vit", "b.pth", "moco-v3"),
    ("mae", "b.pth", "mae"),
    ("finetune-mean", "b.pth", "mae-finetune"),
    ("probe-mae", "b.pth", "mae-finetune"),
    ("finetune-token", "b.pth", "deit"),
    ("probe-resnet18", "b.pth", "timm"),
    ("moco-vit", "b.pd", "passl-moco"),
    ("moco-vit", "b.pdparams", "passl-deit"),
    ("mae", "b.pd", "passl-mae"),
    ("moco-vit", "b.safetensors", "triport"),
    ("mae", "b", "libai-mae"),
    ("finetune-token", "b", "libai-vit"),
    ("finetune-mean", "b", "libai-mae-finetune"),
]


@pytest.mark.parametrize(("kind", "target", "layout"), DEFAULTS)
def test_endings_choose_layouts(tmp_path: Path, kind: str, target: str, layout: str) -> None:
    source = save(tmp_path / "a.pth", kind)
    assert convert(source, tmp_path / target, heads=8, decoder_heads=4).to_layout == layout


def test_the_remark_on_deit_small_is_made_of_models_of_its_width_only(tmp_path: Path) -> None:
    for width, count in ((32, 0), (384, 1)):
        spec = replace(small.MODELS["finetune-token"], encoder=replace(small.TUNED, width=width, depth=1))
        files.write(tmp_path / f"{width}.pth", {"model": small.arrays(spec)}, "torch")
        report = convert(tmp_path / f"{width}.pth", tmp_path / f"{width}.bin", to="deit")
        assert sum("deit_small" in note for note in report.notes) == count


def test_what_stands_around_the_state(tmp_path: Path) -> None:
    source = save(tmp_path / "a.pth")
    for to, target, keys in (
        ("moco-v3", "b.pth", {"epoch", "arch", "state_dict"}),
        ("moco-v3-bare", "c.pth", {"epoch", "arch", "state_dict"}),
        ("passl", "d.pd", {"epoch", "arch", "state_dict", "optimizer", "scaler"}),
        ("mmpretrain", "e.pth", {"meta", "state_dict"}),
        ("deit", "f.pth", {"model"}),
        ("libai", "g", {"model"}),
        ("libai", "vit-0.1", {"model"}),  # which is not a file extension
    ):
        convert(source, tmp_path / target, to=to, heads=8)
        tree = files.read(tmp_path / target).tree
        assert set(tree) == keys and tree.get("epoch", 7) == 7
    assert (tmp_path / "g" / "model_0000000" / "model" / "pickled_data").is_file()
    assert "cls_token" in files.read(tmp_path / "f.pth").tree["model"]
    flat = convert(source, tmp_path / "h.pdparams")
    assert flat.to_layout == "passl-deit" and len(files.read(tmp_path / "h.pdparams").tree) == len(ENCODER)


# ---------------------------------------------------------------- choices
def test_either_encoder_alone(tmp_path: Path) -> None:
    source = save(tmp_path / "a.pth")
    for only, prefix in (("encoder", "base_encoder."), ("momentum", "momentum_encoder.")):
        report = convert(source, tmp_path / f"{only}.safetensors", only=only)  # type: ignore[arg-type]
        wanted = {n: MOCO[prefix + n] for n in ENCODER}
        assert same(load_weights(tmp_path / f"{only}.safetensors"), wanted)
        assert len(report.dropped) == len(MOCO) - len(ENCODER) and not report.missing
    with pytest.raises(UserError, match="no momentum encoder"):
        convert(save(tmp_path / "b.pth", "mae"), tmp_path / "c.pth", only="momentum")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_floating_values_may_have_another_dtype(tmp_path: Path, dtype: str) -> None:
    report = convert(save(tmp_path / "a.pth"), tmp_path / "b.safetensors", dtype=dtype)
    found = load_weights(tmp_path / "b.safetensors")
    counters = [n for n in MOCO if n.endswith("num_batches_tracked")]
    assert all(found[n].dtype == np.int64 and found[n] == MOCO[n] for n in counters)
    others = {n: a.astype(found[n].dtype) for n, a in MOCO.items() if n not in counters}
    assert all(str(found[n].dtype) == dtype and a.tobytes() == found[n].tobytes() for n, a in others.items())
    assert report.counts()["cast"] == len(others)


def test_values_that_a_dtype_does_not_reach_are_no_infinities(tmp_path: Path) -> None:
    arrays = small.arrays(small.MODELS["mae"])
    arrays["norm.bias"][3], arrays["norm.bias"][4] = 7e4, np.inf  # the second is one already
    files.write(tmp_path / "a.pth", {"model": arrays}, "torch")
    with pytest.raises(UserError, match=r"'norm\.bias' holds values too large for float16"):
        convert(tmp_path / "a.pth", tmp_path / "b.pth", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]
    convert(tmp_path / "a.pth", tmp_path / "b.pth", dtype="bfloat16")


def test_one_shard_is_not_a_model(tmp_path: Path) -> None:
    save(tmp_path / "a.pth", "mae")
    convert(tmp_path / "a.pth", tmp_path / "model.safetensors.index.json", to="hf")
    (shard,) = tmp_path.glob("*.safetensors")
    load_weights(shard)  # all of it
    shard.rename(tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(UserError, match="is one of 2 shards"):
        load_weights(tmp_path / "model-00001-of-00002.safetensors")
    assert main(["inspect", str(tmp_path / "model-00001-of-00002.safetensors")]) == 0


def test_averages_that_stay_behind_are_reported(tmp_path: Path) -> None:
    for name in ("model_ema", "state_dict_ema", "ema_state_dict"):
        save(tmp_path / f"{name}.pth", "mae", **{name: {"a": np.ones(1)}})
        report = convert(tmp_path / f"{name}.pth", tmp_path / f"{name}.npz")
        assert any("an average of the weights" in note for note in report.notes)


def test_position_tables_are_resampled_on_request(tmp_path: Path) -> None:
    spec = replace(small.MODELS["mae"], encoder=replace(small.MAE_VIT, image=(32, 16)))  # 4 x 4 patches
    arrays = small.arrays(spec)
    files.write(tmp_path / "a.pth", {"model": arrays}, "torch")
    report = convert(tmp_path / "a.pth", tmp_path / "b.pth", image=(40, 24), heads=8)
    assert report.architecture.endswith("8 heads, 40 x 24 pixels") and report.architecture in report.provenance.values()
    found = load_weights(tmp_path / "b.pth")
    assert sorted(report.names("resampled")) == ["decoder_pos_embed", "pos_embed"]
    for name, array in arrays.items():
        if "pos_embed" in name:
            assert np.abs(found[name] - resampled(array, (4, 4), (5, 6))).max() < 1e-7, name
        else:
            assert np.array_equal(found[name], array), name
    for image, line in (((41, 24), "do not divide into patches"), ((40, 23), "do not divide into patches")):
        with pytest.raises(UserError, match=line):
            convert(tmp_path / "a.pth", tmp_path / "c.pth", image=image)
    with pytest.raises(UserError, match="not a square grid"):
        convert(save(tmp_path / "d.pth", "mae"), tmp_path / "c.pth", image=(32, 16))
    with pytest.raises(UserError, match="ResNet"):
        convert(save(tmp_path / "e.pth", "probe-resnet18"), tmp_path / "c.pth", image=(32, 16))


def recipe(heads: int, width: int = 32) -> Recipe:
    found = recipes.load("moco_v3/vit_small_300ep")
    encoder = replace(small.VIT, width=width, heads=heads)
    return replace(found, model=replace(found.model, encoder=encoder))


def test_heads_come_from_the_command_line_a_recipe_or_the_files_own_word(tmp_path: Path) -> None:
    source = save(tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"--heads or --recipe"):
        convert(source, tmp_path / "b")
    assert not list(tmp_path.glob("b*"))
    convert(source, tmp_path / "b", heads=8)
    convert(source, tmp_path / "c", recipe=recipe(8))
    convert(source, tmp_path / "d", recipe=recipe(4))
    one, two, three = (load_raw(tmp_path / name) for name in "bcd")
    name = "base_encoder.blocks.0.self_attention.query_key_value.weight"
    assert np.array_equal(one[name], two[name]) and not np.array_equal(one[name], three[name])
    with pytest.raises(UserError, match="width 64"):
        convert(source, tmp_path / "e", recipe=recipe(4, width=64))
    with pytest.raises(UserError, match="5 heads do not divide"):
        convert(source, tmp_path / "e", heads=5)
    wide = replace(small.MODELS["moco-vit"], encoder=replace(small.VIT, width=48))
    state = {f"module.{n}": a for n, a in small.arrays(wide).items()}
    files.write(tmp_path / "f.pth", {"epoch": 1, "arch": "vit_small", "state_dict": state}, "torch")
    report = convert(tmp_path / "f.pth", tmp_path / "g")
    assert report.heads == 12 and not any("heads" in note for note in report.notes)
    report = convert(tmp_path / "f.pth", tmp_path / "h", heads=6)
    assert report.heads == 6 and "the file says 12 heads, but 6 as was asked for are taken" in report.notes


def test_a_changed_model_that_kept_its_word_is_not_bound_to_heads_which_its_width_cannot_have(tmp_path: Path) -> None:
    state = {f"module.{n}": a for n, a in small.arrays(small.MODELS["moco-vit"]).items()}
    source = tmp_path / "a.pth.tar"
    files.write(source, {"epoch": 1, "arch": "vit_small", "state_dict": state}, "torch")  # width 32: not by 12
    report = convert(source, tmp_path / "b.pd")
    assert report.heads is None and any("'vit_small', but 12 heads do not divide" in note for note in report.notes)
    assert not report.unknown and not report.missing
    with pytest.raises(UserError, match=r"say it with --heads"):
        convert(source, tmp_path / "c")
    with pytest.raises(UserError, match=r"5 heads do not divide: say the right number with --heads"):
        convert(source, tmp_path / "c", heads=5)
    assert convert(source, tmp_path / "c", heads=4).heads == 4


def load_raw(path: Path) -> dict[str, np.ndarray]:
    return {n: a.read() for n, a in files.read(path).tree["model"].items()}


# ---------------------------------------------------------------- what is refused
def test_targets_are_not_replaced_unasked(tmp_path: Path) -> None:
    source = save(tmp_path / "a.pth")
    target = tmp_path / "b.pd"
    target.write_text("precious")
    with pytest.raises(UserError, match=r"b\.pd: exists already"):
        convert(source, target)
    assert target.read_text() == "precious" and len(list(tmp_path.iterdir())) == 2
    convert(source, target, force=True)
    assert same(load_weights(target), MOCO)
    target.unlink()
    with pytest.raises(UserError, match=r"b.pd.json: exists already"):
        convert(source, target)
    assert not target.exists()
    with pytest.raises(UserError, match="is the source itself"):
        convert(source, tmp_path / "." / "a.pth", force=True)


def test_missing_and_unknown_arrays_of_the_model_are_refused(tmp_path: Path) -> None:
    arrays = {n: a for n, a in MOCO.items() if n != "base_encoder.norm.bias"}
    for lost in (arrays, {**MOCO, "base_encoder.more": np.zeros(2)}):
        files.write(tmp_path / "a.pth", {"state_dict": lost}, "torch", force=True)
        for strict in (True, False):
            with pytest.raises(UserError, match=r"base_encoder\.(norm\.bias|more).*--allow-partial"):
                convert(tmp_path / "a.pth", tmp_path / "b.pth", strict=strict)
        assert not (tmp_path / "b.pth").exists()
        report = convert(tmp_path / "a.pth", tmp_path / "b.npz", allow_partial=True)
        assert len(report.missing) + len(report.unknown) == 1 and report.provenance["partial"] == report.partial
        for path in tmp_path.glob("b.*"):
            path.unlink()
    save(tmp_path / "c.pth")
    convert(tmp_path / "c.pth", tmp_path / "d.pth", strict=True)


REFUSED = [
    ("moco-conv", {"to": "libai", "heads": 8}, "b", r"no place for 'base_encoder.patch_embed"),
    ("moco-conv", {"to": "hf-vit"}, "b.pth", r"no place for 'patch_embed"),
    ("moco-resnet18", {"to": "hf-vit"}, "b.pth", "has no ResNets"),
    ("mae", {"to": "moco-v3-linear"}, "b.pth", "holds a classifier, the source mae"),
    ("mae", {"to": "nonsense"}, "b.pth", "no layout is called 'nonsense'"),
    ("mae", {"from_": "hf-vit"}, "b.pth", "does not have the layout that was asked for"),
    ("mae", {"dtype": "float31"}, "b.pth", "no dtype is called 'float31'"),
    ("mae", {"dtype": "bfloat16", "heads": 8, "decoder_heads": 4}, "b", "--dtype"),
    ("mae", {}, "b.jpeg", r"\.jpeg"),
]


@pytest.mark.parametrize(("kind", "options", "target", "line"), REFUSED)
def test_what_cannot_be_done_is_reported_in_one_line(
    tmp_path: Path, kind: str, options: dict[str, Any], target: str, line: str
) -> None:
    source = save(tmp_path / "a.pth", kind)
    with pytest.raises(UserError, match=line) as caught:
        convert(source, tmp_path / target, **options)
    assert "\n" not in str(caught.value) and [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file or folder .*x\.pth"):
        convert(tmp_path / "x.pth", tmp_path / "y.pth")


def test_a_target_that_reads_back_otherwise_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = files.read

    def flipped(path: Path) -> File:
        file = real(path)
        if "b.safetensors" in path.name:
            array = file.tree["norm.weight"].read().copy()
            array.view(np.uint32)[5] ^= 1
            file.tree["norm.weight"] = lazy(array)
        return file

    monkeypatch.setattr(module.files, "read", flipped)
    with pytest.raises(UserError, match=r"'/norm.weight' reads back with other bits"):
        convert(save(tmp_path / "a.pth", "mae"), tmp_path / "b.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_what_fails_leaves_the_old_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = save(tmp_path / "a.pth", "mae"), tmp_path / "b.pd"
    convert(source, target)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(path: Path, *rest: Any) -> None:
        raise UserError(f"{path}: no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.files, "write", full)
        with pytest.raises(UserError, match=r"/b\.pd: no space left"):
            convert(source, target, force=True)
    write = files.write

    def flipped(path: Path, *rest: Any) -> None:
        write(path, *rest)
        with open(path, "r+b") as file:
            file.seek(path.stat().st_size // 2)
            bit = file.read(1)[0] ^ 1
            file.seek(-1, 1)
            file.write(bytes([bit]))

    monkeypatch.setattr(module.files, "write", flipped)
    with pytest.raises(UserError, match="reads back with other bits"):
        convert(source, target, force=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# ---------------------------------------------------------------- provenance
def test_provenance_goes_along(tmp_path: Path) -> None:
    source = save(tmp_path / "a.pth")
    first = convert(source, tmp_path / "b.safetensors", heads=8)
    words = json.loads(files.read(tmp_path / "b.safetensors").metadata["provenance"])
    assert words == first.provenance
    assert words["source_sha256"] == provenance.digest(source) and words["source"] == "a.pth"
    assert (words["from_layout"], words["to_layout"], words["heads"], words["epoch"]) == ("moco-v3", "triport", 8, 7)
    assert "CC BY-NC 4.0" in words["licence"]
    convert(tmp_path / "b.safetensors", tmp_path / "c.pd")
    words = json.loads((tmp_path / "c.pd.json").read_text())["provenance"]
    assert words["crc32"] == provenance.checksum(tmp_path / "c.pd") and words["heads"] == 8
    assert "CC BY-NC 4.0" in words["licence"] and words["earlier"]["source"] == "a.pth"
    assert str(tmp_path) not in json.dumps(words)


def test_a_long_row_of_conversions_is_noted_as_far_as_its_last_ones(tmp_path: Path) -> None:
    note: dict[str, Any] = {"heads": 8, "source": "the first"}
    for _ in range(30):
        note = {"source": "another", "earlier": note}
    files.write(tmp_path / "a.safetensors", small.arrays(small.MODELS["mae"]), "safetensors", {"provenance": "{}"})
    for _ in range(2):
        files.write(
            tmp_path / "a.safetensors",
            small.arrays(small.MODELS["mae"]),
            "safetensors",
            {"provenance": json.dumps({"heads": 8, **note})},
            force=True,
        )
        report = convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", force=True)
        note, depth = report.provenance, 0
        found: Any = note
        while found := found.get("earlier"):
            depth += 1
        assert depth == 20 and report.heads == 8


def test_shards_know_their_source_too(tmp_path: Path) -> None:
    source = save(tmp_path / "a.pth", "mae")
    convert(source, tmp_path / "b.safetensors.index.json")
    words = json.loads(files.read(tmp_path / "b.safetensors.index.json").metadata["provenance"])
    assert words["source_sha256"] == provenance.digest(source)


def test_the_digest_of_an_index_is_about_its_shards(tmp_path: Path) -> None:
    index = tmp_path / "b.safetensors.index.json"
    convert(save(tmp_path / "a.pth", "mae"), index)
    before = provenance.digest(index)
    assert convert(index, tmp_path / "c.pth").provenance["source_sha256"] == before
    (shard,) = tmp_path.glob("b-*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert provenance.digest(index) != before


def test_provenance_beside_another_file_is_not_believed(tmp_path: Path) -> None:
    convert(save(tmp_path / "a.pth"), tmp_path / "b.pd", heads=8)
    other = convert(save(tmp_path / "c.pth"), tmp_path / "d.pd")
    assert other.heads is None
    (tmp_path / "b.pd.json").replace(tmp_path / "d.pd.json")
    data = bytearray((tmp_path / "d.pd").read_bytes())
    data[-40] ^= 1  # a value, not the structure
    (tmp_path / "d.pd").write_bytes(data)
    with pytest.raises(UserError, match="--heads"):
        convert(tmp_path / "d.pd", tmp_path / "e")


# ---------------------------------------------------------------- command line
def test_the_command_line_converts_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = str(save(tmp_path / "a.pth")), str(tmp_path / "b.pd")
    assert main(["convert", source, target, "--heads", "8", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert sum(one for kind, one in report["counts"].items() if kind not in ("made", "missing")) == len(MOCO)
    assert report["counts"]["dropped"] == 8 and report["to_layout"] == "passl-moco"
    assert report["arrays"][0]["targets"] == ["base_encoder.pos_embed"]
    assert main(["convert", source, target]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("triport: error: ") and shown.err.count("\n") == 1
    assert main(["convert", source, target, "--force"]) == 0
    shown = capsys.readouterr()
    assert "moco-v3" in shown.out and "transposed" in shown.out and "CC BY-NC" in shown.out
    assert main(["layouts"]) == 0 and "hf-vit-mae" in capsys.readouterr().out
    for words in (["convert", source], ["convert", source, target, "--image", "0"], ["nothing"], [], ["diff", "--bo"]):
        assert main(words) == 2
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err.startswith("triport: error: ") and shown.err.count("\n") == 1


def test_the_commands_of_the_page_about_weights_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "weights.md").read_text(encoding="utf-8")
    commands = [shlex.split(line, comments=True) for line in page.splitlines() if line.startswith("triport ")]
    assert len(commands) >= 7
    arrays = {
        kind: small.arrays(replace(small.MODELS[kind], encoder=replace(vit, width=48, heads=12)))
        for kind, vit in (("moco-vit", small.VIT), ("mae", small.MAE_VIT))
    }
    names = [p for p in arrays["moco-vit"] if "running" not in p and "tracked" not in p]
    slots = {place: {"mu": arrays["moco-vit"][name]} for place, name in enumerate(names) if "momentum" not in name}
    options = {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.9, "trust_coefficient": 1e-3}
    optimizer = {"state": slots, "param_groups": [{**options, "params": list(range(len(names)))}]}
    moco = {"epoch": 300, "arch": "vit_small", "state_dict": arrays["moco-vit"], "optimizer": optimizer}
    monkeypatch.chdir(tmp_path)
    files.write("vit-s-300ep.pth.tar", moco, "torch")
    encoder = {name: a for name, a in arrays["mae"].items() if "decoder" not in name and name != "mask_token"}
    files.write("mae_pretrain_vit_base.pth", {"model": encoder}, "torch")
    for _, *words in commands:
        assert main(words) == 0, words  # 1 where `diff` finds a difference
    again = files.read("again.pth.tar").tree["optimizer"]["state"]
    assert again.keys() == slots.keys()
    assert all(np.array_equal(again[place]["mu"].read(), slot["mu"]) for place, slot in slots.items())


def test_names_from_files_are_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files.write(tmp_path / "a.pth", {"state_dict": {**MOCO, "queue.[red]x": np.zeros(2)}}, "torch")
    for words in (["convert", "a.pth", "b.pd"], ["inspect", "a.pth", "--tensors"], ["diff", "a.pth", "a.pth"]):
        assert main([words[0], *(str(tmp_path / w) if "." in w else w for w in words[1:])]) == 0
        assert words[0] == "diff" or "queue.[red]x" in capsys.readouterr().out
