"""get_model, inference_model and features of a batch, in the interpreter of each framework."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import triport
from triport import api, inference
from triport.core.errors import UserError
from triport.core.model.init import initial_values
from triport.core.spec import recipe
from triport.parity_tests.reference.objectives import embed, forward
from triport.parity_tests.tool.bounds import hold

PRETRAINING = ("tiny/test_moco_vit", "tiny/test_mae_vit", "tiny/test_moco_resnet")


def name_of(probe: ModuleType) -> str:
    """The framework of this interpreter."""
    return probe.__name__.split(".")[-2]


def tensor(framework: str, array: np.ndarray) -> Any:
    """An array as the framework's tensor."""
    return getattr(import_module(framework), "to_tensor" if framework == "paddle" else "from_numpy")(array)


def far(got: Any, want: np.ndarray) -> float:
    return float(np.abs(got.detach().numpy() - want).max() / np.abs(want).max())


@pytest.mark.parametrize("name", [*PRETRAINING, "tiny/test_moco_linear"])
def test_models_answer_one_batch_of_images_with_features(probe: ModuleType, tmp_path: Path, name: str) -> None:
    """get_model(name, pretrained=FILE) computes with the file's values; a pretraining model answers with features."""
    spec = recipe.load(name).model
    arrays = initial_values(spec, 5)
    save_file(arrays, str(tmp_path / "w.safetensors"))
    model = triport.get_model(name, pretrained=tmp_path / "w.safetensors", backend=name_of(probe))
    model.eval()
    numbers = np.random.Generator(np.random.Philox(1)).normal(size=(3, spec.encoder.channels, *spec.encoder.image))
    images = numbers.astype(np.float32)
    batch = tensor(name_of(probe), images)
    features, head = model.features(batch), model.forward_head(model.extract_feat(batch))
    want = embed(spec, arrays, images)
    for got in (features, model.extract_feat(batch)):
        hold("forward", far(got, want), f"features of {name}")
    if name in PRETRAINING:
        hold("forward", far(model(batch), want), f"{name} called with images")
    else:
        logits = forward(spec, arrays, {"images": images})["logits"]
        hold("forward", far(model(batch), logits), f"{name} called with images")
        hold("forward", far(head, logits), f"forward_head of {name}")
    if name == "tiny/test_moco_vit":
        hold("forward", far(head, forward(spec, arrays, {"images": images})["projection"]), "projection")


def test_a_pretraining_model_still_trains_with_two_views(probe: ModuleType) -> None:
    """What the model does with more than one batch is what it did before."""
    spec = recipe.load("tiny/test_moco_vit").model
    model = triport.create_model("tiny/test_moco_vit", backend=name_of(probe))
    shape = (4, spec.encoder.channels, *spec.encoder.image)
    views = [tensor(name_of(probe), np.full(shape, value, np.float32)) for value in (0.5, -0.5)]
    answer = model(*views, lambda rows: rows)
    assert set(answer) == {"loss", "q1", "q2", "k1", "k2", "features"}
    assert tuple(answer["features"].shape) == (4, 32)  # of the first view, for an online probe


def test_a_model_says_what_an_image_is(probe: ModuleType, tmp_path: Path) -> None:
    spec = recipe.load("tiny/test_moco_linear").model
    arrays = initial_values(spec, 1)
    arrays["head.weight"] = arrays["head.weight"] * 40  # so that scores differ
    save_file(arrays, str(tmp_path / "w.safetensors"))
    image = np.arange(np.prod(spec.encoder.image), dtype=np.uint8).reshape(*spec.encoder.image, 1)
    image = np.repeat(image, spec.encoder.channels, axis=2)
    found = triport.inference_model(
        "tiny/test_moco_linear", image, pretrained=tmp_path / "w.safetensors", backend=name_of(probe)
    )
    one = recipe.load("tiny/test_moco_linear")
    logits = forward(spec, arrays, {"images": api.prepared(one, [image])})["logits"][0]
    wanted = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert set(found) == {"pred_class", "pred_label", "pred_score", "pred_scores"}
    assert found["pred_scores"] == pytest.approx(wanted, rel=1e-4) and found["pred_scores"].sum() == pytest.approx(1)
    assert found["pred_label"] == wanted.argmax() and found["pred_class"] == str(wanted.argmax())
    assert found["pred_score"] == found["pred_scores"].max()


def test_a_run_names_the_class_of_an_image(probe: ModuleType, tmp_path: Path) -> None:
    """The folder of a run knows its recipe, its weights and the names of its classes."""
    for split, kind, number in ((s, k, n) for s in ("train", "val") for k in ("fox", "owl") for n in range(4)):
        path = tmp_path / "data" / split / kind / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (20, 20), 40 * number + 9 * len(kind)).save(path)
    words = [
        "tiny/test_mae_finetune",
        "--data",
        str(tmp_path / "data"),
        "--from-scratch",
        "--out",
        str(tmp_path / "run"),
    ]
    words += ["batch=4", "model.objective.classes=2", "epochs=1", "warmup=0", "--workers", "0", "--device", "cpu"]
    assert import_module(f"triport.backends.{name_of(probe)}.finetune").main(words) == 0
    picture = tmp_path / "data/val/owl/1.png"
    found = inference.inference_model(tmp_path / "run", picture, backend=name_of(probe), device="cpu")
    assert found["pred_class"] == ("fox", "owl")[found["pred_label"]] and found["pred_scores"].shape == (2,)
    logits = triport.logits(tmp_path / "run", [picture], backend=name_of(probe), device="cpu")
    assert logits[0].argmax() == found["pred_label"]


def test_what_has_no_weights_says_how_to_name_them() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    for model, printed in (("moco_v3_vit_base_classifier", "pretrained=FILE"), ("moco_v3_vit_bas", "Did you mean")):
        with pytest.raises(UserError, match=printed):
            triport.inference_model(model, image)
    with pytest.raises(UserError, match="not a model in memory"):
        triport.inference_model(object(), image)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="nothing is downloaded"):
        triport.get_model("moco_v3_vit_base", pretrained=True)  # type: ignore[arg-type]
