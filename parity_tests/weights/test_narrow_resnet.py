"""ResNets of other depths and widths than torchvision's: read by their shapes, converted, refused where none can be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from triport import convert, load_weights
from triport.core.errors import UserError
from triport.core.model.flops import flops
from triport.core.model.inventory import encoder_inventory, feature_width, parameter_count
from triport.core.record import export
from triport.core.spec import ModelSpec, ResNet, recipe
from triport.parity_tests.tool import small
from triport.weights.canonical import architecture

RECIPE = recipe.load("tiny/moco_resnet10")


def saved(folder: Path) -> Path:
    """The encoder of the demo's recipe as a run leaves it."""
    path = folder / "encoder.safetensors"
    export.write_encoder(path, RECIPE, small.arrays(RECIPE.model))
    return path


@pytest.mark.parametrize(("depth", "width"), [(10, 32), (10, 64), (18, 16), (50, 32)])
def test_depth_and_width_are_read_off_the_shapes(depth: int, width: int) -> None:
    encoder = ResNet(depth=depth, width=width, zero_init_residual=True)  # type: ignore[arg-type]
    found = architecture({p.name: p.shape for p in encoder_inventory(encoder)})
    assert (found.depth, found.first_stage, found.width) == (depth, width, feature_width(encoder))
    own = found.encoder()
    assert isinstance(own, ResNet) and (own.depth, own.width) == (depth, width)
    assert f"ResNet-{depth}" in found.describe() and ("width" in found.describe()) == (width != 64)


def test_the_width_is_that_of_torchvision_where_nothing_is_reported() -> None:
    plain = ModelSpec(encoder=ResNet(depth=18, zero_init_residual=False), objective=small.NARROW.objective)
    assert feature_width(plain.encoder) == 512
    quarter = ModelSpec(encoder=ResNet(depth=18, width=16, zero_init_residual=False), objective=plain.objective)
    assert parameter_count(quarter) < parameter_count(plain) / 10 and flops(quarter) < flops(plain) / 10


@pytest.mark.parametrize("name", ["encoder.pth", "encoder.pdparams", "again.safetensors"])
def test_it_is_converted_and_comes_back_to_the_same_bits(tmp_path: Path, name: str) -> None:
    source = saved(tmp_path)
    convert(source, tmp_path / name)
    convert(tmp_path / name, tmp_path / "back.safetensors", to="triport")
    mine, theirs = load_weights(source), load_weights(tmp_path / "back.safetensors")
    shared = {key: value for key, value in mine.items() if not key.endswith("num_batches_tracked")}
    assert shared and all(np.array_equal(theirs[key], value) for key, value in shared.items())


def test_timm_has_none_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"timm has no ResNet-10, width 32"):
        convert(saved(tmp_path), tmp_path / "folder", to="timm")
