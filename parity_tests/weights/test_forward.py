"""What converted weights compute: the original code's recorded numbers, on every framework that is set up."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from triport.parity_tests.tool import cases
from triport.parity_tests.tool.bounds import hold
from triport.parity_tests.tool.questions import Arrays, Remote, distance
from triport.weights.commands.convert import convert
from triport.weights.commands.load import load_encoder, load_model
from triport.weights.files import files

# golden case -> the layouts and files that its weights go through, the first as the original writes it
CHAINS = {
    "lincls-vit_small": (
        ("moco-v3-linear", "model_best.pth.tar"),
        ("passl-linear", "model_best.pd"),
        ("libai-vit", "libai"),
        ("deit", "deit.pth"),
    ),
    "moco-vit_small": (
        ("moco-v3", "checkpoint.pth.tar"),
        ("passl-moco", "checkpoint.pd"),
        ("libai-moco", "libai"),
        ("mmpretrain-moco", "mmpretrain.pth"),
    ),
    "mae-mae_vit_base_patch16": (
        ("mae", "mae.pth"),
        ("hf-vit-mae", "hf.safetensors"),
        ("libai-mae-0.1", "libai"),
        ("mae", "back.pth"),
    ),
}


def original(path: Path, case: cases.Case, arrays: Arrays) -> None:
    """Write a checkpoint as the original code does."""
    if case.kind == "mae":
        own = {"model": "mae_vit_base_patch16", "norm_pix_loss": True}
        files.write(path, {"model": dict(arrays), "epoch": 0, "args": own}, "torch")
    else:
        state = {f"module.{name}": array for name, array in arrays.items()}
        files.write(path, {"epoch": 1, "arch": case.meta["arch"], "state_dict": state}, "torch")


def converted(case: cases.Case, arrays: Arrays, folder: Path) -> Path:
    """The last file of a case's chain of conversions. Nobody says any heads: the files tell them."""
    (_, first), *rest = CHAINS[case.name]
    at = folder / first
    original(at, case, arrays)
    for layout, name in rest:
        report = convert(at, folder / name, to=layout, strict=True)
        assert (report.to_layout, report.heads) == (layout, 12)
        at = folder / name
    return at


def loaded(case: cases.Case, path: Path, head: Arrays) -> Arrays:
    """A model's arrays from a file; the probe of MoCo v3 takes the encoder alone, as a run does, and gets `head`."""
    if case.kind != "lincls":
        whole, report = load_model(path, case.spec)
        assert not report.faults()
        return whole
    encoder, report = load_encoder(path, case.spec)
    assert not report.faults() and not any(name in encoder for name in head)
    return {**encoder, **head}


@pytest.fixture(scope="module", params=CHAINS)
def travelled(request: pytest.FixtureRequest) -> tuple[cases.Case, Arrays]:
    """A golden case, and its weights as they come out of the chain; the files, a gigabyte in all, do not stay."""
    case = cases.read(cases.GOLDENS / f"{request.param}.safetensors")
    arrays = case.arrays()
    head: Arrays = {key: array for key, array in arrays.items() if key in ("head.weight", "head.bias")}
    with TemporaryDirectory() as folder:
        found = loaded(case, converted(case, arrays, Path(folder)), head)
    assert found.keys() == arrays.keys() and all(np.array_equal(found[key], a) for key, a in arrays.items())
    return case, found


def test_converted_weights_compute_what_the_original_did(travelled: tuple[cases.Case, Arrays], backend: str) -> None:
    case, arrays = travelled
    n = 2  # in evaluation mode each image is on its own
    inputs = {key: array[:n] for key, array in case.inputs().items() if key in ("images", "mask_noise")}
    answer = Remote(backend).forward(case.spec, arrays, inputs)
    if case.kind == "mae":
        answer = {"pred_head": answer["prediction"][:, :4, :32]}
    outputs = {"lincls": ("eval/logits",), "moco": ("eval/projection", "eval/prediction"), "mae": ("step0/pred_head",)}
    for output in outputs[case.kind]:
        error = distance(answer[output.rpartition("/")[2]], case.record[output][:n])
        hold("forward-full", error, f"{case.name} {output} on {backend}")
