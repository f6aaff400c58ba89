"""`triport.create_model` with weights of other projects, in each framework's own interpreter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triport.core.model.init import initial_values
from triport.core.model.inventory import encoder_inventory
from triport.core.spec.recipe import load
from triport.parity_tests.reference.objectives import forward
from triport.parity_tests.tool import small
from triport.parity_tests.tool.ask import Question, ask
from triport.parity_tests.tool.bounds import hold
from triport.parity_tests.tool.questions import distance
from triport.weights.commands.convert import convert
from triport.weights.files import files

MODULES = {"torch": "torch.Module", "paddle": "paddle.Layer", "oneflow": "oneflow.Module"}
PROBE, PRETRAINED = load("tiny/test_moco_linear").model, load("tiny/test_moco_vit").model
TUNED = load("tiny/test_mae_finetune").model
IMAGES = np.random.default_rng(0).standard_normal((3, 1, *PROBE.encoder.image), dtype=np.float32)


def asked(backend: str, function: str, *given: dict[str, Any]) -> list[Any]:
    return ask(backend, [Question(function, one) for one in given], probe="triport.parity_tests.fixtures.model_probe")


def test_each_frameworks_own_module_has_the_weights(backend: str, tmp_path: Path) -> None:
    """An encoder out of moco-v3's, PASSL's and LiBai's files, a head drawn from the seed; a whole fine-tuned model."""
    arrays, tuned = small.arrays(PRETRAINED), small.arrays(TUNED)
    files.write(tmp_path / "moco.pth.tar", {"state_dict": {f"module.{n}": a for n, a in arrays.items()}}, "torch")
    files.write(tmp_path / "tuned.pth", {"model": tuned}, "torch")
    convert(tmp_path / "moco.pth.tar", tmp_path / "passl.pd")
    convert(tmp_path / "moco.pth.tar", tmp_path / "libai", heads=2)
    names = ["moco.pth.tar", "passl.pd", "libai"]
    given: list[dict[str, Any]] = [{"name": "tiny/test_moco_linear", "weights": str(tmp_path / name)} for name in names]
    given.append({"name": "tiny/test_mae_finetune", "weights": str(tmp_path / "tuned.pth")})
    given.append({"name": "tiny/test_moco_linear", "weights": None, "backend": backend})
    given = [{**one, "images": IMAGES} for one in given]
    *probes, whole, drawn = asked(backend, "created", *given)
    fresh = initial_values(PROBE, 0)
    encoder = {p.name: arrays[f"base_encoder.{p.name}"] for p in encoder_inventory(PROBE.encoder)}
    probe = {**fresh, **encoder}
    for found, wanted, spec in (*((one, probe, PROBE) for one in probes), (whole, tuned, TUNED), (drawn, fresh, PROBE)):
        assert MODULES[backend] in found["kinds"]
        assert found["arrays"].keys() == wanted.keys()
        assert all(np.array_equal(found["arrays"][name], array) for name, array in wanted.items())
        hold("forward", distance(found["logits"], forward(spec, wanted, {"images": IMAGES})["logits"]), "create_model")


@pytest.mark.parametrize("name", ["nothing.pth", "moco.pth"])
def test_weights_that_do_not_fit_are_refused_in_one_line(backend: str, tmp_path: Path, name: str) -> None:
    files.write(tmp_path / "moco.pth", {"state_dict": small.arrays(small.MODELS["moco-vit"])}, "torch")
    (line,) = asked(backend, "refused", {"name": "tiny/test_moco_linear", "weights": str(tmp_path / name)})
    assert str(tmp_path / name) in line and "\n" not in line
