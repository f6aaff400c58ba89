"""Which of a file's arrays are read: containers, prefixes, wrappers, averages, and what is asked for by name."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triport import api, weights
from triport.core.errors import UserError
from triport.core.options import parse
from triport.core.run.initial import initial_arrays
from triport.core.run.subject import find_subject
from triport.core.selection import Selection, selected
from triport.core.spec import recipe as recipes
from triport.parity_tests.fixtures.foreign import model_of, values_of
from triport.parity_tests.tool import small
from triport.verbs import model
from triport.verbs.start import NAMES
from triport.weights.arrays import Inert, Lazy
from triport.weights.commands.command import main
from triport.weights.files.files import write
from triport.weights.layouts.catalogue import BY_NAME
from triport.weights.model.detect import Several, detect
from triport.weights.model.model import decode, encode
from triport.weights.model.opening import open_model
from triport.weights.model.report import Report

KEYS = (
    "state_dict", "model", "model_state", "model_state_dict", "teacher", "student", "state_dict_ema", "ema_state_dict",
    "model_ema", "ema", "net", "network", "module", "backbone", "encoder", "params", "weights", "target_encoder",
    "online_network", "base_encoder", "momentum_encoder", "pretrained", "checkpoint", "weights_ema", "params_ema",
)  # fmt: skip
ENCODER = values_of(small.MODELS["finetune-token"])
ENCODER = {name: array for name, array in ENCODER.items() if not name.startswith("head.")}


def values(arrays: dict[str, Lazy], factor: float = 1) -> dict[str, np.ndarray]:
    return {name: array.read() * np.float32(factor) for name, array in arrays.items()}


def placed(arrays: dict[str, Lazy], prefix: str) -> dict[str, Lazy]:
    return {prefix + name: array for name, array in arrays.items()}


def read(path: Path, **selection: Any) -> dict[str, np.ndarray]:
    return weights.load_weights(path, selection=Selection(**selection))


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> bool:
    return found.keys() == wanted.keys() and all(np.array_equal(found[n], wanted[n]) for n in wanted)


# ---------------------------------------------------------------- containers
@pytest.mark.parametrize("key", [*KEYS, "state.model", "a.b.c"])
def test_a_model_is_found_under_any_key_where_it_is_the_only_one(key: str) -> None:
    tree: dict[str, Any] = ENCODER
    for word in reversed(key.split(".")):
        tree = {word: tree}
    found = detect({**tree, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": ENCODER["cls_token"]}}}}, "torch")
    assert found.state.container == key and not found.faults and len(found.names.found) == len(ENCODER)


@pytest.mark.parametrize("one, two", [("teacher", "student"), ("encoder", "target_encoder"), ("a", "b.c")])
def test_two_models_are_named_with_what_to_type(one: str, two: str, tmp_path: Path) -> None:
    tree: dict[str, Any] = {one: values(ENCODER)}
    inner = tree
    for word in two.split(".")[:-1]:
        inner = inner.setdefault(word, {})
    inner[two.split(".")[-1]] = values(ENCODER, 2)
    write(tmp_path / "x.pth", tree)
    with pytest.raises(UserError, match=rf"'{one}' and '{two}' read as .*--key {one} or --key {two}"):
        read(tmp_path / "x.pth")
    assert same(read(tmp_path / "x.pth", key=one), values(ENCODER))
    assert same(read(tmp_path / "x.pth", key=two), values(ENCODER, 2))
    with pytest.raises(UserError, match=f"has the key 'teachers'.*'{one}', '{two}'"):
        read(tmp_path / "x.pth", key="teachers")


# ---------------------------------------------------------------- averages
@pytest.mark.parametrize("main_key, key", [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("net", "ema")])
def test_an_average_is_read_only_when_asked_for(main_key: str, key: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    write(path, {key: values(ENCODER, 2), main_key: values(ENCODER)})
    opened = open_model(path)
    assert same(read(path), values(ENCODER)) and opened.average == key
    assert any(f"'{key}': --ema takes it" in note for note in opened.report.notes)
    assert same(read(path, average=True), values(ENCODER, 2))


def test_an_average_inside_a_lightning_module_is_read_only_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    inner = {f"model.{n}": a for n, a in values(ENCODER).items()}
    inner |= {f"model_ema.module.{n}": a for n, a in values(ENCODER, 2).items()}
    write(path, {"state_dict": inner}, "torch")
    assert same(read(path), values(ENCODER)) and open_model(path).average == "model_ema"
    assert same(read(path, average=True), values(ENCODER, 2))
    assert same(read(path, prefix="model_ema.module."), values(ENCODER, 2))


def test_mmengine_has_swapped_the_average_and_the_weights(tmp_path: Path) -> None:
    """EMAHook puts the average into state_dict before it saves."""
    path = tmp_path / "epoch_3.pth"
    own = {f"module.{n}": a for n, a in values(ENCODER, 2).items()} | {"steps": np.array(7)}
    write(path, {"meta": {"epoch": 3}, "state_dict": values(ENCODER), "ema_state_dict": own})
    opened = open_model(path)
    assert any("--key ema_state_dict" in note for note in opened.report.notes)
    assert same(read(path), values(ENCODER)) and same(read(path, average=True), values(ENCODER))
    assert same(read(path, key="ema_state_dict"), values(ENCODER, 2))


def test_a_file_of_an_average_alone_is_read_and_said_to_be_one(tmp_path: Path) -> None:
    write(tmp_path / "x.pth", {"model_ema": values(ENCODER)})
    assert any("is an average" in note for note in open_model(tmp_path / "x.pth").report.notes)


# ---------------------------------------------------------------- prefixes and wrappers
@pytest.mark.parametrize("prefix", ["backbone.", "model.", "model.backbone.", "net.encoder.vit.", "0.", "x.y.z.v."])
def test_one_prefix_is_found_and_what_is_outside_is_listed(prefix: str) -> None:
    tree = {"state_dict": {**placed(ENCODER, prefix), "criterion.center": ENCODER["cls_token"]}}
    found = detect(tree, "torch")
    assert found.state.prefix == prefix and not found.faults and found.state.outside == ["criterion.center"]


def test_two_prefixes_are_named_with_what_to_type(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    both = {f"student.backbone.{n}": a for n, a in values(ENCODER).items()}
    both |= {f"teacher.backbone.{n}": a for n, a in values(ENCODER, 2).items()}
    write(path, {"model": both})
    with pytest.raises(UserError, match=r"--prefix student.backbone. or --prefix teacher.backbone."):
        read(path)
    for typed in ("teacher.backbone.", "teacher.backbone"):
        assert same(read(path, prefix=typed), values(ENCODER, 2))
    with pytest.raises(UserError, match=r"no name begins with the prefix 'tutor\.'.*'student\.', 'student\."):
        read(path, prefix="tutor")


@pytest.mark.parametrize(
    "wrapped",
    [
        "module.{}", "_orig_mod.{}", "_forward_module._orig_mod.{}", "module.model._orig_mod.{}", "model.module.{}",
        "_fsdp_wrapped_module.{}", "model._fsdp_wrapped_module.{}", "net._orig_mod.module.{}",
    ],
)  # fmt: skip
def test_wrappers_vanish_wherever_they_stand(wrapped: str) -> None:
    inner = {}
    for name, array in ENCODER.items():
        name = name.replace("blocks.1.", "blocks.1._fsdp_wrapped_module._checkpoint_wrapped_module.")
        inner[wrapped.format(name)] = array
    found = detect({"state_dict": inner}, "torch")
    assert not found.faults and len(found.names.found) == len(ENCODER)
    assert sorted(map(found.state.full, found.state.arrays)) == sorted(inner)


def test_a_wrapper_stays_where_two_names_would_become_one() -> None:
    tree = {**ENCODER, "_orig_mod.cls_token": ENCODER["cls_token"]}
    found = detect(tree, "torch")
    assert found.names.unknown == ["_orig_mod.cls_token"]


def test_a_whole_that_lacks_one_array_is_not_read_as_one_of_its_parts() -> None:
    arrays = values_of(small.MODELS["moco-vit"])
    del arrays["predictor.3.weight"]
    found = detect({"state_dict": arrays}, "torch")
    assert found.layout.name == "moco-v3-bare" and found.missing == ["predictor.3.weight"]


def test_several_is_an_error_with_one_line() -> None:
    tree = {f"part{n}": ENCODER for n in range(9)}
    with pytest.raises(Several) as caught:
        detect(tree, "torch")
    assert "and 6 more" in str(caught.value) and len(str(caught.value)) < 600


# ---------------------------------------------------------------- the command line
def test_every_command_that_reads_weights_takes_the_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "x.pth", tmp_path / "y.safetensors"
    write(path, {"teacher": values(ENCODER, 2), "student": values(ENCODER), "w": {"ema": values(ENCODER, 3)}})
    assert main(["convert", str(path), str(out)]) == 2
    assert "--key teacher or --key student" in capsys.readouterr().err
    assert main(["convert", str(path), str(out), "--key", "student"]) == 0
    assert same(weights.load_weights(out), values(ENCODER))
    assert main(["convert", str(path), str(out), "--ema", "--force"]) == 0
    assert same(weights.load_weights(out), values(ENCODER, 3))
    capsys.readouterr()
    assert main(["inspect", str(path), "--key", "teacher", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layout"] == "timm"
    assert main(["diff", str(out), str(path), "--second-ema"]) == 0
    assert main(["diff", str(path), str(out), "--key", "student"]) == 1


def two_models(folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A file with a teacher's and a student's encoder under `net.`; and the values of the teacher."""
    spec = recipes.load(PROBE).model
    teacher = {name: array for name, array in small.arrays(spec, 7).items() if not name.startswith("head.")}
    both = {"teacher": teacher, "student": {name: -array for name, array in teacher.items()}}
    write(folder / "two.pth", {who: {f"net.{n}": a for n, a in arrays.items()} for who, arrays in both.items()})
    return folder / "two.pth", teacher


PROBE = "tiny/test_moco_linear"
PAGE = ["--page", "p.html"]
VERB_WORDS = {
    "attention": PAGE,
    "embed": ["--out", "f.npz"],
    "export": ["--to", "onnx"],
    "neighbours": [*PAGE, "--among", "x"],
    "reconstruct": PAGE,
}
TEACHER = ["--key", "teacher", "--prefix", "net."]


def test_weights_of_a_run_take_the_choice(tmp_path: Path) -> None:
    path, teacher = two_models(tmp_path)
    recipe = recipes.load(PROBE)
    for task in ("linear", "finetune", "evaluate"):
        given = parse(task, [PROBE, "--weights", str(path), *TEACHER])
        arrays, _ = initial_arrays(recipe, given.weights, selection=given.selection)
        assert all(np.array_equal(arrays[name], array) for name, array in teacher.items())
        with pytest.raises(UserError, match=r"--key teacher .*or --key student"):
            initial_arrays(recipe, str(path), selection=Selection())


def test_verbs_and_the_interface_take_the_choice(tmp_path: Path) -> None:
    path, teacher = two_models(tmp_path)
    recipe, named = recipes.load(PROBE), PROBE
    choice = Selection(key="teacher", prefix="net.")
    for found in (
        find_subject(named, weights=str(path), features_only=True, selection=choice),
        model.subject(path, named, selection=choice),
        api.find(path, named, True, choice),
    ):
        assert all(np.array_equal(found.arrays[name], array) for name, array in teacher.items())
    for verb in NAMES:
        pictures = [] if verb == "measure" else ["pictures"]
        words = ["x", *pictures, *TEACHER, *VERB_WORDS.get(verb, [])]
        parsed = importlib.import_module(f"triport.verbs.{verb}").parser().parse_intermixed_args(words)
        assert selected(parsed) == choice, verb
    loaded = api.load_arrays(recipe.model, path, 0, choice)
    assert all(np.array_equal(loaded[name], array) for name, array in teacher.items())


def test_a_choice_that_chooses_nothing_is_refused(tmp_path: Path) -> None:
    choice = Selection(key="teacher")
    recipe = recipes.load("tiny/test_mae_finetune")
    with pytest.raises(UserError, match="--key, --prefix and --ema choose among"):
        initial_arrays(recipe, None, True, choice)
    with pytest.raises(UserError, match="--key, --prefix and --ema choose among"):
        find_subject(str(tmp_path), selection=choice)


# ---------------------------------------------------------------- objects of unknown classes
def test_an_object_beside_the_model_is_listed_and_one_in_its_place_refused() -> None:
    record = Inert("omegaconf.dictconfig.DictConfig")
    found = detect({"state_dict": ENCODER, "hyper_parameters": record}, "torch")
    assert not found.faults
    with pytest.raises(UserError, match=r"'state_dict' is a omegaconf\.dictconfig\.DictConfig; nothing"):
        detect({"state_dict": record, "epoch": 3}, "torch")
    with pytest.raises(UserError, match=r"'model' is a whole timm\.models\.x\.ViT; save the model's state_dict"):
        detect({"model": Inert("timm.models.x.ViT")}, "torch")


# ---------------------------------------------------------------- layouts of other projects
STRIPPED = {"moco-v3-stripped": "finetune-token", "mmpretrain-backbone": "finetune-token"}
KINDS = {
    "solo-learn-moco": ("moco-vit", "moco-resnet18"),
    "solo-learn-mae": ("mae",),
    "lightly-mae": ("mae",),
    "mmselfsup-0-moco": ("moco-vit", "moco-resnet18"),
}


@pytest.mark.parametrize("name, kind", [(name, kind) for name, kinds in KINDS.items() for kind in kinds])
def test_layouts_read_back_what_they_write(name: str, kind: str) -> None:
    spec = small.MODELS[kind]
    state = encode(model_of(spec, values_of(spec)), BY_NAME[name], Report())
    found = detect({"state_dict": state}, "torch")
    assert found.layout.name == name and not found.faults
    back = decode(found, Report()).arrays()
    wanted = values_of(spec)
    assert back.keys() == wanted.keys()
    assert all(np.array_equal(back[n].read(), wanted[n].read()) for n in wanted)


def test_a_projector_left_in_as_a_head_is_dropped_with_a_note() -> None:
    base = {n[13:]: a for n, a in values_of(small.MODELS["moco-vit"]).items() if n.startswith("base_encoder.")}
    report = Report()
    found = decode(detect(base, "torch"), report)
    assert found.architecture.method == "encoder" and not report.unknown and not report.missing
    assert {name.split(".")[0] for name, _ in report.dropped} == {"head"} and len(report.dropped) == 16


def test_the_second_names_of_mmselfsup_are_dropped() -> None:
    spec = small.MODELS["moco-vit"]
    state = encode(model_of(spec, values_of(spec)), BY_NAME["mmselfsup-0-moco"], Report())
    again = {f"backbone.{n[15:]}": a for n, a in state.items() if n.startswith("base_encoder.0.")}
    again |= {f"neck.{n[15:]}": a for n, a in state.items() if n.startswith("base_encoder.1.")}
    report = Report()
    found = detect({"state_dict": {**state, **again}}, "torch")
    decode(found, report)
    assert found.layout.name == "mmselfsup-0-moco" and not found.faults and len(report.dropped) == len(again) > 40


def test_a_part_of_another_module_is_not_taken_for_the_file_of_a_project() -> None:
    """Lightning's {state_dict: model.…} is not moco-v3's {state_dict: module.…}, whose licence would go with it."""
    arrays = placed(values_of(small.MODELS["finetune-token"]), "model.")
    assert detect({"state_dict": arrays}, "torch").layout.name == "timm"
