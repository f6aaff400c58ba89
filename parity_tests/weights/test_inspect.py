"""What inspect says of every kind of file, from headers alone unless values are asked for; and diff."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triport.core.errors import UserError
from triport.core.model.inventory import parameter_count
from triport.core.model.position import table
from triport.core.spec import MAE, ModelSpec
from triport.parity_tests.tool import small
from triport.weights.arrays import Lazy
from triport.weights.commands.command import main
from triport.weights.commands.convert import convert
from triport.weights.commands.diff import diff
from triport.weights.commands.inspect import Inspection, inspect
from triport.weights.files import files
from triport.weights.model.provenance import digest


def save(path: Path, kind: str, **more: Any) -> Path:
    arrays = small.arrays(small.MODELS[kind])
    tree = {"state_dict": {f"module.{n}": a for n, a in arrays.items()}} if "moco" in kind else {"model": arrays}
    files.write(path, {**tree, **more}, "torch")
    return path


def headers(path: Path) -> Inspection:
    """Inspect a file whose values must not be read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lazy, "read", lambda self: pytest.fail("a value was read"))
        return inspect(path)


LAYOUTS = {
    "moco-vit": "moco-v3",
    "moco-conv": "moco-v3",
    "moco-resnet18": "moco-v3",
    "mae": "mae",
    "finetune-token": "deit",
    "finetune-mean": "deit",
    "probe-mae": "deit",
    "probe-resnet18": "deit",
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_headers_tell_what_it_is(tmp_path: Path, kind: str) -> None:
    spec = small.MODELS[kind]
    found = headers(save(tmp_path / "a.pth", kind, epoch=4))
    assert (found.form, found.layout, found.method) == ("torch", LAYOUTS[kind], spec.objective.kind)
    ended = 4 if "moco" in kind else 5  # MAE and DeiT count from 0 the epoch that has just ended
    assert found.parameters == parameter_count(spec) and found.epoch == ended
    assert found.arrays == len(small.arrays(spec)) and found.dtypes["float32"] >= 30
    assert found.heads is None and found.nonfinite is None and found.rows == [] and not found.optimizer
    assert found.classes == (7 if spec.objective.kind == "classifier" else None)
    assert "NC 4.0" in str(found.licence)
    assert found.to_json() == json.loads(json.dumps(found.to_json()))


def test_other_forms_are_reported_by_headers_too(tmp_path: Path) -> None:
    source = save(tmp_path / "a.pth", "moco-vit")
    forms = {"b.pd": "passl-moco", "c": "libai-moco", "d.safetensors": "triport", "e.npz": "triport"}
    for target, layout in forms.items():
        convert(source, tmp_path / target, heads=8)
        found = headers(tmp_path / target)
        assert (found.layout, found.heads) == (layout, 8) and found.provenance["source"] == "a.pth"
        assert found.parts[0] == "encoder" and "predictor" in found.parts


def test_what_maes_own_arguments_tell(tmp_path: Path) -> None:
    own = {"model": "mae_vit_base_patch16", "norm_pix_loss": True, "mask_ratio": 0.75}
    pixels = MAE(normalised_pixels=True, decoder_width=32, decoder_depth=1)
    arrays = small.arrays(ModelSpec(encoder=replace(small.MAE_VIT, width=48), objective=pixels))
    files.write(tmp_path / "a.pth", {"model": arrays, "epoch": 9, "args": own, "optimizer": {"a": 1}}, "torch")
    found = headers(tmp_path / "a.pth")
    assert (found.layout, found.heads, found.decoder_heads) == ("mae", 12, 16)
    assert found.normalised_pixels is True and found.epoch == 10 and found.optimizer
    assert ("target", "normalised pixels") in found.lines()
    found = inspect(save(tmp_path / "b.pth", "mae"))
    assert found.normalised_pixels is None and ("target", "not stated") in found.lines()


@pytest.mark.parametrize(("word", "heads"), [("deit_base_patch16_224", 12), ("deit_small_patch16_224", None)])
def test_deits_own_word_tells_heads_but_for_the_size_that_moco_changes(
    tmp_path: Path, word: str, heads: int | None
) -> None:
    """DeiT-S has 6 heads; fine-tuned from MoCo v3's ViT-S it has 12 and is still called so."""
    spec = small.MODELS["finetune-token"]
    arrays = small.arrays(replace(spec, encoder=replace(small.TUNED, width=48)))
    files.write(tmp_path / "a.pth", {"model": arrays, "args": {"model": word}}, "torch")
    assert headers(tmp_path / "a.pth").heads == heads


def test_values_tell_more(tmp_path: Path) -> None:
    arrays = small.arrays(small.MODELS["mae"])
    spec = replace(small.MODELS["mae"], encoder=replace(small.MAE_VIT, image=(32, 16)))
    arrays = small.arrays(spec)
    arrays["norm.bias"][:3] = (np.nan, np.inf, -np.inf)
    arrays["pos_embed"] = table("mae", 32, (4, 4))
    files.write(tmp_path / "a.pth", {"model": arrays}, "torch")
    found = inspect(tmp_path / "a.pth", values=True)
    assert found.nonfinite == 3 and found.position_table == "mae" and found.rows == []
    found = inspect(tmp_path / "a.pth", tensors=True)
    row = next(row for row in found.rows if row.name == "norm.bias")
    saved = arrays["norm.bias"][3:].astype(np.float64)
    assert (row.least, row.greatest, row.nonfinite) == (saved.min(), saved.max(), 3)
    assert row.mean == pytest.approx(saved.mean()) and row.deviation == pytest.approx(saved.std())
    assert row.shape == (32,) and row.dtype == "float32" and row.canonical == "norm.bias"
    assert len(found.rows) == len(arrays)
    arrays["pos_embed"] = table("moco", 32, (4, 4))
    files.write(tmp_path / "b.pth", {"model": arrays}, "torch")
    assert inspect(tmp_path / "b.pth", values=True).position_table == "moco"
    arrays["pos_embed"] = arrays["pos_embed"] + np.float32(0.01)
    files.write(tmp_path / "c.pth", {"model": arrays}, "torch")
    assert inspect(tmp_path / "c.pth", values=True).position_table == "another"


def test_files_without_a_layout_are_described_as_far_as_that_goes(tmp_path: Path) -> None:
    files.write(tmp_path / "a.pth", {"x.weight": np.zeros((2, 3), np.float32), "x.steps": np.array(3)}, "torch")
    found = inspect(tmp_path / "a.pth", tensors=True)
    assert found.layout is None and "no layout that is known" in str(found.fault) and found.epoch is None
    assert (found.arrays, found.elements, found.dtypes) == (2, 7, {"float32": 1, "int64": 1})
    assert [row.name for row in found.rows] == ["x.weight", "x.steps"] and found.nonfinite == 0
    more = {"state_dict": {"x": np.zeros(1)}, "epoch": 3, "arch": "other", "optimizer": {"state": {}}}
    files.write(tmp_path / "d.pth", more, "torch")
    found = inspect(tmp_path / "d.pth")
    assert (found.epoch, found.arch, found.optimizer, found.layout) == (3, "other", True, None)
    files.write(tmp_path / "b.pth", {"epoch": 3}, "torch")
    with pytest.raises(UserError, match="no named arrays"):
        inspect(tmp_path / "b.pth")
    (tmp_path / "c.pth").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"c\.pth"):
        inspect(tmp_path / "c.pth")


def test_heads_of_hugging_face_files_come_from_config_json(tmp_path: Path) -> None:
    convert(save(tmp_path / "a.pth", "finetune-token"), tmp_path / "model.safetensors", to="hf-vit", only="encoder")
    assert inspect(tmp_path / "model.safetensors").heads is None
    config = {"model_type": "vit", "num_attention_heads": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = inspect(tmp_path / "model.safetensors")
    assert found.heads == 8 and found.layout == "hf-vit" and found.method == "encoder"
    for text in ("[1]", "{", json.dumps({**config, "num_attention_heads": "many"}), "[" * 100_000):
        (tmp_path / "config.json").write_text(text)
        assert inspect(tmp_path / "model.safetensors").heads is None


def test_config_json_is_believed_about_its_own_file_only(tmp_path: Path) -> None:
    convert(save(tmp_path / "a.pth", "finetune-token"), tmp_path / "model.safetensors", to="hf-vit", only="encoder")
    config = {"model_type": "vit", "num_attention_heads": 8, "hidden_size": 32, "num_hidden_layers": 3}
    for more, heads in (({}, 8), ({"hidden_size": 768}, None), ({"num_hidden_layers": 12}, None)):
        (tmp_path / "config.json").write_text(json.dumps({**config, **more}))
        assert inspect(tmp_path / "model.safetensors").heads == heads
    assert inspect(tmp_path / "a.pth").heads is None  # of another project, though it stands in the same folder


def test_what_files_say_is_not_a_order_to_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "a\x1b[2J\r\nb"
    noted = {"licence": evil, "source": evil, "recipe": evil, "epoch": 10**400, "heads": 10**30}
    arrays = {**small.arrays(small.MODELS["mae"]), evil: np.ones(1, np.float32)}
    files.write(tmp_path / "a.pth", {"model": arrays, "arch": evil, "epoch": 10**200}, "torch")
    arrays.pop(evil)
    files.write(tmp_path / "b.safetensors", arrays, "safetensors", {"provenance": json.dumps(noted)})
    for name in ("a.pth", "b.safetensors"):
        words = [[command, str(tmp_path / name)] for command in ("inspect", "inspect", "convert", "diff")]
        words[1].append("--tensors")
        words[2].append(str(tmp_path / f"{name}.npz"))
        words[3].append(str(tmp_path / "a.pth"))
        for one in words:
            assert main(one) in (0, 1, 2)
            printed = capsys.readouterr()
            assert (
                (printed.out or printed.err)
                and "\x1b" not in printed.out + printed.err
                and "\r" not in printed.out + printed.err
            )
    assert inspect(tmp_path / "b.safetensors").heads is None and inspect(tmp_path / "b.safetensors").epoch is None


def test_what_two_layouts_share_is_reported_where_keys_leave_a_choice(tmp_path: Path) -> None:
    convert(save(tmp_path / "a.pth", "finetune-mean"), tmp_path / "b", heads=8)
    assert headers(tmp_path / "b").layout == "libai-mae-finetune"  # the note beside it says so
    convert(tmp_path / "b", tmp_path / "c.safetensors", to="libai-mae-finetune")
    assert headers(tmp_path / "c.safetensors").layout == "libai-mae-finetune"  # and the one in it
    (tmp_path / "b.json").unlink()
    found = headers(tmp_path / "b")
    assert found.layout is None and "libai-vit, libai-mae-finetune" in str(found.fault)
    assert (found.method, found.classes, found.parts) == ("classifier", 7, ["encoder", "head"])
    assert "width 32, depth 3" in str(found.architecture)
    rows = {row.name: row.canonical for row in inspect(tmp_path / "b", tensors=True).rows}
    assert rows["norm.weight"] is None


def test_a_folder_of_libai_is_known_from_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(save(tmp_path / "a.pth", "moco-vit"), tmp_path / "run", heads=8)
    checkpoint = tmp_path / "run" / "model_0000000"
    for path in (tmp_path / "run", checkpoint, checkpoint / "model"):
        assert inspect(path).heads == 8
        monkeypatch.chdir(path)
        assert inspect(".").heads == 8 and inspect(".").provenance["source"] == "a.pth"
    report = convert(".", tmp_path / "c.safetensors")
    assert report.heads == 8 and report.provenance["source_sha256"] == digest(checkpoint / "model")
    for target in (".", "..", "/"):
        with pytest.raises(UserError, match="cannot be the name of a target"):
            convert(tmp_path / "a.pth", target, heads=8, force=True)


def test_the_optimiser_of_a_compiled_run_of_libai_is_seen(tmp_path: Path) -> None:
    convert(save(tmp_path / "a.pth", "moco-vit"), tmp_path / "run", heads=8)
    tree = dict(files.read(tmp_path / "run").tree)
    moments = {"model.cls_token-m": np.zeros((1, 1, 64), np.float32), "System-Train-TrainStep": np.array([3])}
    files.write(tmp_path / "compiled", {**tree, "graph": moments}, "libai")
    assert inspect(tmp_path / "compiled").optimizer and not inspect(tmp_path / "run").optimizer


# ---------------------------------------------------------------- diff
def test_the_same_model_in_other_layouts_does_not_differ(tmp_path: Path) -> None:
    source = save(tmp_path / "a.pth", "moco-vit")
    arrays = small.arrays(small.MODELS["moco-vit"])
    for target in ("b.pd", "c", "d.npz"):
        convert(source, tmp_path / target, heads=8)
        found = diff(source, tmp_path / target)
        counters = 0 if target == "d.npz" else 8
        assert found.same() and found.equal == len(arrays) - counters and not found.changes
        assert bool(found.notes) == bool(counters)
    found = diff(tmp_path / "b.pd", tmp_path / "c")
    assert found.same() and found.layouts == ("passl-moco", "libai-moco")


def test_each_file_may_need_its_layout_given(tmp_path: Path) -> None:
    source = save(tmp_path / "a.pth", "finetune-token")
    convert(source, tmp_path / "b", heads=8)
    assert diff(source, tmp_path / "b").same()  # the note beside it says what it is
    (tmp_path / "b.json").unlink()
    with pytest.raises(UserError, match="--from"):
        diff(source, tmp_path / "b", heads=8)
    assert diff(source, tmp_path / "b", heads=8, second_from="libai-vit").same()
    found = diff(source, tmp_path / "b", heads=8, second_from="libai-mae-finetune")
    assert found.only_first == ["norm.weight", "norm.bias"] and not found.shapes


def test_encoders_are_compared_where_one_holds_no_more(tmp_path: Path) -> None:
    source = save(tmp_path / "a.pth", "moco-vit")
    convert(source, tmp_path / "b.pth", only="encoder")
    convert(source, tmp_path / "c.pth", only="momentum")
    found = diff(source, tmp_path / "b.pth")
    assert found.same() and found.equal == 42 and "their encoders are compared" in found.notes[0]
    found = diff(source, tmp_path / "c.pth")
    assert not found.same() and len(found.changes) + found.equal == 42
    assert diff(source, tmp_path / "a.pth", only="momentum").same()


def test_differences_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = small.arrays(small.MODELS["mae"])
    files.write(tmp_path / "a.pth", {"model": arrays}, "torch")
    other = {n: a.copy() for n, a in arrays.items() if n != "norm.bias"}
    other["norm.weight"][4] += np.float32(0.25)
    other["decoder_norm.weight"][:2] = (np.nan, np.inf)
    other["decoder_norm.bias"] = other["decoder_norm.bias"].astype(np.float64)
    other["extra.weight"] = np.zeros(2, np.float32)
    files.write(tmp_path / "b.pth", {"model": other}, "torch")
    found = diff(tmp_path / "a.pth", tmp_path / "b.pth")
    assert found.only_first == ["norm.bias"] and found.only_second == ["extra.weight"] and not found.same(1.0)
    changes = {change.name: change for change in found.changes}
    assert set(changes) == {"norm.weight", "decoder_norm.weight", "decoder_norm.bias"}
    assert changes["norm.weight"].greatest == pytest.approx(0.25, rel=1e-6)
    assert changes["norm.weight"].mean == pytest.approx(0.25 / 32, rel=1e-6)
    assert changes["decoder_norm.weight"].greatest == np.inf and changes["decoder_norm.bias"].greatest == 0
    words = ["diff", str(tmp_path / "a.pth"), str(tmp_path / "b.pth")]
    assert main(words) == 1
    shown = capsys.readouterr().out
    assert "norm.bias" in shown and "not the same" in shown
    assert main([*words, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["equal"] == found.equal
    assert main(["diff", words[1], words[1]]) == 0
    assert main(["diff", words[1], "missing"]) == 2


def test_counters_and_empty_arrays_are_compared_too(tmp_path: Path) -> None:
    arrays = {**small.arrays(small.MODELS["moco-vit"]), "strange": np.zeros((0, 3), np.float32)}
    files.write(tmp_path / "a.pth", {"state_dict": arrays}, "torch")
    name = "predictor.1.num_batches_tracked"
    other = {**arrays, name: np.array(5, np.int64), "strange": np.zeros((0, 3), np.float64)}
    files.write(tmp_path / "b.pth", {"state_dict": other}, "torch")
    found = diff(tmp_path / "a.pth", tmp_path / "b.pth")
    assert {(c.name, c.greatest, c.scale) for c in found.changes} == {(name, 2, 3), ("strange", 0, 0)}


def test_equal_values_of_another_dtype_are_no_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save(tmp_path / "a.pth", "mae")
    convert(source, tmp_path / "b.pth", dtype="float64")
    assert main(["diff", str(source), str(tmp_path / "b.pth")]) == 0
    shown = capsys.readouterr().out
    assert "the same: 0 arrays equal to the bit, 74 in value only" in shown and "|difference|" not in shown


def test_a_bound_lets_small_differences_pass(tmp_path: Path) -> None:
    arrays = small.arrays(small.MODELS["mae"])
    files.write(tmp_path / "a.pth", {"model": arrays}, "torch")
    files.write(tmp_path / "b.pth", {"model": {n: a + np.float32(1e-3) for n, a in arrays.items()}}, "torch")
    words = ["diff", str(tmp_path / "a.pth"), str(tmp_path / "b.pth")]
    assert main(words) == 1 and main([*words, "--bound", "0.01"]) == 0


def test_other_shapes_are_named(tmp_path: Path) -> None:
    other = replace(small.MODELS["mae"], encoder=replace(small.MAE_VIT, image=(32, 16)))
    files.write(tmp_path / "a.pth", {"model": small.arrays(other)}, "torch")
    found = diff(save(tmp_path / "b.pth", "mae"), tmp_path / "a.pth")
    assert [name for name, _, _ in found.shapes] == ["pos_embed", "decoder_pos_embed"] and not found.same(1e9)
