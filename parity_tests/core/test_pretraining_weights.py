"""Pretraining from weights: the encoder is theirs, the rest is drawn, and their licence goes along."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from triport import convert, inspect
from triport.core.errors import UserError
from triport.core.model.init import initial_values
from triport.core.model.inventory import encoder_inventory
from triport.core.record import checkpoint, export
from triport.core.run import initial
from triport.core.spec import recipe
from triport.parity_tests.fixtures import toy
from triport.parity_tests.tool import small

NAMES = {"moco": "tiny/test_moco_vit", "mae": "tiny/test_mae_vit", "resnet": "tiny/test_moco_resnet"}


@pytest.mark.parametrize("kind", NAMES)
def test_the_encoder_is_the_files_and_the_rest_is_drawn(tmp_path: Path, kind: str) -> None:
    one = recipe.load(NAMES[kind])
    theirs = small.arrays(one.model)
    export.write_encoder(tmp_path / "encoder.safetensors", one, theirs)
    arrays, lines = initial.initial_arrays(one, str(tmp_path / "encoder.safetensors"))
    drawn = initial_values(one.model, one.seed)
    assert list(arrays) == list(drawn) and "random values" in lines[-1]
    own = [p.name for p in encoder_inventory(one.model.encoder)]
    prefixes = [""] if kind == "mae" else ["base_encoder.", "momentum_encoder."]
    taken = {prefix + name for prefix in prefixes for name in own}
    source = prefixes[0]
    for prefix in prefixes:
        assert all(np.array_equal(arrays[prefix + name], theirs[source + name]) for name in own)
    assert all(np.array_equal(arrays[name], drawn[name]) for name in drawn if name not in taken)
    assert any(not np.array_equal(arrays[name], drawn[name]) for name in taken)


def test_an_encoder_of_another_width_is_refused(tmp_path: Path) -> None:
    one = recipe.load(NAMES["moco"])
    export.write_encoder(tmp_path / "encoder.safetensors", one, small.arrays(one.model))
    with pytest.raises(UserError, match="width"):
        initial.initial_arrays(recipe.load(NAMES["moco"], ["model.encoder.width=64"]), str(tmp_path))


def test_the_licence_of_the_weights_goes_along(tmp_path: Path) -> None:
    one = recipe.load(NAMES["moco"])
    theirs = small.arrays(one.model)
    export.write_encoder(tmp_path / "own.safetensors", one, theirs)
    assert "no licence of other weights" in initial.licence(str(tmp_path / "own.safetensors"))
    convert(tmp_path / "own.safetensors", tmp_path / "foreign.pth", to="deit", force=True)
    (tmp_path / "foreign.pth.json").unlink(missing_ok=True)  # as another project would have left it
    notice = initial.licence(str(tmp_path / "foreign.pth"))
    assert "no licence of other weights" not in notice
    export.write_encoder(tmp_path / "tuned.safetensors", one, theirs, {"licence": notice})
    with safe_open(tmp_path / "tuned.safetensors", "np") as file:
        assert json.loads(file.metadata()["provenance"]) == {"licence": notice}
    assert inspect(tmp_path / "tuned.safetensors").licence == notice
    state = {"recipe": recipe.to_toml(one), "epoch": 1, "licence": notice, "name": one.name, "backend": "torch"}
    checkpoint.save(tmp_path / "run" / "checkpoints" / "last", {"model": theirs}, state)
    assert inspect(tmp_path / "run" / "checkpoints" / "last" / "model.safetensors").licence == notice


def test_a_run_begins_with_them_and_says_so_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(toy.whole("moco"))
    assert toy.go("moco", tmp_path / "run", "--weights", source, "--stop-after-steps", "1") == 0
    printed = capsys.readouterr().out
    assert "encoder from" in printed and "projectors and predictor begin with random values" in printed
    state = checkpoint.read_state(checkpoint.latest(tmp_path / "run"))
    assert "no licence of other weights" in state["licence"]
    assert toy.go("moco", tmp_path / "run", "--resume", "--stop-after-steps", "2") == 0
    assert checkpoint.read_state(checkpoint.latest(tmp_path / "run"))["licence"] == state["licence"]
