"""What a refusal says to type: for an encoder beside parts of other methods, or under a head of another kind."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from triport.core.errors import UserError
from triport.core.selection import Selection
from triport.parity_tests.tool import small
from triport.weights.commands.command import main
from triport.weights.commands.convert import convert
from triport.weights.commands.load import load_weights
from triport.weights.files import files

Arrays = dict[str, np.ndarray]
ENCODER: Arrays = {n: a for n, a in small.arrays(small.MODELS["finetune-token"]).items() if not n.startswith("head.")}
RESNET: Arrays = {n: a for n, a in small.arrays(small.MODELS["probe-resnet18"]).items() if not n.startswith("fc.")}
DROPPED = re.compile(r"a part of it reads as a model: take that with (--prefix \S+?)(?=$|, or)")


def ones(*names: str, shape: tuple[int, ...] = (8,)) -> Arrays:
    return {name: np.ones(shape, np.float32) for name in names}


def norm(name: str, width: int = 8) -> Arrays:
    return ones(*(f"{name}.{word}" for word in ("weight", "bias", "running_mean", "running_var")), shape=(width,))


def below(prefix: str, arrays: Arrays) -> Arrays:
    return {prefix + name: array for name, array in arrays.items()}


BIASED = ones("0.bias", "2.bias") | ones("0.weight", shape=(8, 32)) | ones("2.weight", shape=(8, 8))
FILES: dict[str, tuple[Arrays, Arrays]] = {
    "a projector with biases": (ENCODER, below("backbone.", ENCODER) | below("projector.", BIASED)),
    "a head of its own in the base encoder": (ENCODER, below("module.base_encoder.", ENCODER | below("head.", BIASED))),
    "Barlow Twins": (
        RESNET,
        below("module.backbone.", RESNET)
        | below("module.projector.", ones("0.weight", shape=(8, 512)) | norm("1") | ones("3.weight", shape=(8, 8)))
        | norm("module.bn"),
    ),
}


def same(found: Arrays, wanted: Arrays) -> bool:
    return found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("kind", FILES)
def test_an_encoder_beside_parts_of_other_methods_is_read_by_what_the_refusal_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    encoder, state = FILES[kind]
    source, target = tmp_path / "a.pth", tmp_path / "b.pth"
    files.write(source, {"epoch": 3, "state_dict": state}, "torch")
    assert main(["convert", str(source), str(target)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and not target.exists()
    option = DROPPED.search(error.strip())
    assert option, error
    assert main(["convert", str(source), str(target), *option[1].split()]) == 0
    assert same(load_weights(target), encoder)


HEADS: dict[str, Arrays] = {
    "dropout before it": ones("head.1.bias") | ones("head.1.weight", shape=(8, 32)),
    "more features": ones("head.bias") | ones("head.weight", shape=(8, 64)),
    "a vector": ones("head.weight", "head.bias"),
}


@pytest.mark.parametrize("kind", HEADS)
def test_an_encoder_is_read_without_a_head_of_another_kind(tmp_path: Path, kind: str) -> None:
    source, target = tmp_path / "a.pth", tmp_path / "b.pth"
    for tree in ({"model": ENCODER | HEADS[kind]}, below("module.", ENCODER | HEADS[kind])):
        files.write(source, tree, "torch", force=True)
        with pytest.raises(UserError, match=r"without its head it is read with --only encoder$"):
            convert(source, target)
        report = convert(source, target, only="encoder", force=True)
        assert same(load_weights(target), ENCODER) and len(report.unknown) == 2


def test_another_model_under_another_key_is_named(tmp_path: Path) -> None:
    other = {name: 2 * array for name, array in ENCODER.items()}
    source = tmp_path / "a.pth"
    files.write(source, {"model": ENCODER, "teacher": other, "state_dict": other}, "torch")
    report = convert(source, tmp_path / "b.pth")
    for key in ("model", "teacher"):
        assert f"the file also holds a model under '{key}': --key {key} takes it" in report.notes
    assert same(load_weights(source, selection=Selection(key="model")), ENCODER)
    files.write(source, {"model": ENCODER, "optimizer": {"state": {}}}, "torch", force=True)
    assert not any("also holds" in note for note in convert(source, tmp_path / "c.pth").notes)


def test_the_values_that_a_framework_keeps_elsewhere_are_asked_for(tmp_path: Path) -> None:
    files.write(
        tmp_path / "a.pt", {"module": {n: np.ones(0, np.float32) for n in ENCODER}, "dp_world_size": 2}, "torch"
    )
    with pytest.raises(UserError, match=r"'cls_token' is empty, as where DeepSpeed's ZeRO-3.*zero_to_fp32\.py"):
        convert(tmp_path / "a.pt", tmp_path / "b.pth")
