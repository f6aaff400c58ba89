"""Recipes, foreign configurations and run folders under mutated files: read, or refused in one line."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from triport.core.errors import UserError
from triport.core.options import parse
from triport.core.record import report
from triport.core.run import resume
from triport.core.run.subject import find_subject
from triport.core.spec import recipe as recipes
from triport.core.spec.foreign import passl
from triport.parity_tests.fixtures import toy
from triport.parity_tests.fixtures.damage import INPUTS, limit, mutated

MANY = settings(max_examples=INPUTS, deadline=None, suppress_health_check=list(HealthCheck))
RECIPE = Path(recipes.__file__).parents[2] / "configs/tiny/test_moco_vit.toml"
YAML = """
epochs: 300
output_dir: output
seed: 0
model:
  name: MoCoV3Pretrain
  base_encoder: {name: mocov3_vit_small, stop_grad_conv1: true}
lr_scheduler: {name: TimmCosine, learning_rate: 1.5e-4, warmup_epoch: 40}
optimizer: {name: AdamW, beta1: 0.9, weight_decay: 0.1}
dataloader:
  train: {dataset: {name: ImageNet}, sampler: {batch_size: 64, drop_last: true}}
"""


def in_one_line(error: UserError) -> None:
    """Check that an error is one line."""
    assert "\n" not in str(error) and str(error)


def file_of(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@MANY
@given(data=st.data())
def test_mutated_recipes(tmp_path_factory, data):
    path = file_of(tmp_path_factory.mktemp("recipe"), "x.toml", data.draw(mutated(RECIPE.read_bytes())))
    with limit():
        try:
            found = recipes.load(str(path))
        except UserError as error:
            in_one_line(error)
        else:
            recipes.parse(recipes.to_toml(found), path)


@MANY
@given(content=mutated(YAML.encode()))
@example(content=b"a: &a [*a]\n")
@example(content=b"a: &a {b: *a}\n")
@example(content=b"[" * 3000)
@example(content=b"a: !!python/object/apply:os.system [echo]\n")
def test_mutated_yaml(tmp_path_factory, content):
    path = file_of(tmp_path_factory.mktemp("yaml"), "x.yaml", content)
    with limit():
        try:
            passl.read(path)
        except UserError as error:
            in_one_line(error)


# ---------------------------------------------------------------- run folders
FILES = (
    "recipe.toml",
    "environment.json",
    "metrics.jsonl",
    "train.log",
    "encoder.safetensors",
    "checkpoints/last/state.json",
    "checkpoints/last/model.safetensors",
    "checkpoints/last/optimizer.safetensors",
)
LINES = (
    '{"kind": "step", "step": "x", "epoch": [], "loss": {}}',
    '{"kind": [], "step": 1, "epoch": 1}',
    '{"kind": "step", "step": 1, "epoch": 1, "loss": "a", "images_per_second": []}',
    '{"kind": "step", "step": true, "epoch": null}',
    '{"kind": "epoch", "step": 3, "epoch": 1e999, "knn": "x"}',
)


def gone_on_from(folder: Path) -> Path:
    """The checkpoint that --resume means."""
    found = resume.find(parse("pretrain", ["--resume", str(folder)]))
    assert found is not None
    return found.checkpoint


def used(folder: Path) -> None:
    """Draw a run's page, look for where it goes on, load it, and find the models in it."""
    for use in (
        lambda: report.write(folder),
        lambda: resume.load(gone_on_from(folder)),
        lambda: find_subject(str(folder)),
        lambda: find_subject(str(folder / "encoder.safetensors")),
    ):
        try:
            use()
        except UserError as error:
            in_one_line(error)


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=max(INPUTS // 10, 1), deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mutated_run_folders(tmp_path_factory, name, data):
    folder = tmp_path_factory.mktemp("run") / "run"
    shutil.copytree(toy.whole("mae"), folder)
    (folder / name).write_bytes(data.draw(mutated((folder / name).read_bytes())))
    with contextlib.chdir(folder.parent) if hasattr(contextlib, "chdir") else contextlib.nullcontext(), limit():
        used(folder)


@pytest.mark.parametrize("line", LINES)
def test_lines_of_other_types_do_not_stop_the_page(tmp_path, line):
    folder = tmp_path / "run"
    shutil.copytree(toy.whole("mae"), folder)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    used(folder)
    assert (folder / "report.html").read_text("utf-8").startswith("<!doctype html>")
