"""Command lines and files of other projects as real runs of two steps: each original's flags, mmpretrain's commands.

What PyTorch runs in one process is run in this one, by the words that `triport` would start it with.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triport import environments
from triport.core.spec import recipe
from triport.parity_tests.fixtures import run_here

ROOT = Path(__file__).resolve().parents[2]
SMALL = "image=16 model.encoder.patch=8 model.encoder.width=16 model.encoder.depth=2 model.encoder.heads=2".split()
CONTRAST = [*SMALL, "model.objective.hidden=8", "model.objective.dim=4"]
MASKED = [*SMALL, *(f"model.objective.decoder_{name}" for name in ("width=16", "depth=1", "heads=2"))]
TRIPORT = [sys.executable, "-m", "triport"]
HERE = ["--device", "cpu", "--stop-after-steps", "2"]
MOCO = "--optimizer=adamw --lr=1.5e-4 --weight-decay=.1 --epochs=3 --warmup-epochs=1 --stop-grad-conv1 --moco-m-cos "
MOCO += "--moco-t=.2 -b 4"
MAES = "--batch_size 2 --accum_iter 2 --epochs 3 --warmup_epochs 1 --num_workers 0"
TUNED = (
    "--blr 5e-4 --layer_decay 0.65 --drop_path 0.1 --reprob 0.25 --mixup 0.8 --cutmix 1.0 --dist_eval --nb_classes 3"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    draw = np.random.Generator(np.random.Philox(7))
    for split, kind, number in ((s, k, n) for s in ("train", "val") for k in "abc" for n in range(4)):
        path = folder / split / kind / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        level = 70 * "abc".index(kind)
        Image.fromarray(draw.integers(level, level + 90, (40, 44, 3), dtype=np.uint8)).save(path)
    return folder


def call(words: Sequence[object], folder: Path) -> str:
    """Run a command in a folder; returns what it says."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PADDLE_")}
    answer = subprocess.run([*map(str, words)], cwd=folder, env=own, capture_output=True, text=True, timeout=600)
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-2000:]
    return answer.stdout + answer.stderr


def run(task: str, flags: str, more: Sequence[str], folder: Path) -> str:
    """Run `triport TASK` on PyTorch with an original's flags, then words of this suite."""
    words = [task, *flags.split(), *more, "--backend", "torch"]
    return call([*TRIPORT, *words], folder) if "--processes" in more else here(words, folder)


def here(words: Sequence[object], folder: Path) -> str:
    """Run `triport …` in one process, which is this; returns what it says."""
    answer = run_here.triport(words, folder)
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-2000:]
    return answer.stdout + answer.stderr


@pytest.fixture(scope="module")
def encoder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of MAE's main_pretrain.py flags."""
    folder = tmp_path_factory.mktemp("masked")
    flags = f"--model mae_vit_base_patch16 --norm_pix_loss --mask_ratio 0.75 --blr 1.5e-4 {MAES} --data_path {data}"
    run("pretrain", f"{flags} --output_dir run", [*MASKED, *HERE], folder)
    return folder / "run"


@pytest.mark.usefixtures("torch")
def test_maes_and_deits_flags_train_two_steps(data: Path, encoder: Path, tmp_path: Path) -> None:
    pretrained = recipe.load(str(encoder / "recipe.toml"))
    assert (pretrained.name, pretrained.batch, pretrained.schedule.epochs) == ("main_pretrain", 4, 3)
    model = f"--model vit_base_patch16 --finetune {encoder} --data_path {data} {MAES}"
    deit = f"--model deit_small_patch16_224 --finetune {encoder} --data-path {data} --batch-size 4 --epochs 3 "
    deit += "--warmup-epochs 1 --num_workers 0"
    for task, flags, name, more in (
        ("finetune", f"{model} {TUNED}", "main_finetune", SMALL),
        ("linear", f"{model} --cls_token --blr 0.1 --weight_decay 0.0 --nb_classes 3", "main_linprobe", SMALL),
        ("finetune", deit, "main", [*SMALL, "model.objective.classes=3", "model.encoder.position=mae"]),
    ):
        run(task, f"{flags} --output_dir {name}", [*more, *HERE], tmp_path)
        made = recipe.load(str(tmp_path / name / "recipe.toml"))
        assert (made.name, made.task, made.batch, made.schedule.warmup_epochs) == (name, task, 4, 1)
        assert (tmp_path / name / "checkpoints" / "last" / "model.safetensors").is_file()


@pytest.mark.usefixtures("torch")
def test_moco_v3s_flags_train_two_steps_in_one_process_and_two(data: Path, tmp_path: Path) -> None:
    flags = f"-a vit_small {MOCO} --multiprocessing-distributed --world-size 1 --rank 0 --dist-url tcp://localhost:1"
    printed = run("pretrain", f"{flags} {data} --out one", [*CONTRAST, *HERE, "--workers", "0"], tmp_path)
    assert "--multiprocessing-distributed = True: the launcher says" in printed
    both = [*CONTRAST, *HERE, "--workers", "0", "--processes", "2"]
    run("pretrain", f"{flags} {data} --out two", both, tmp_path)
    losses = [
        [
            json.loads(line)["loss"]
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
            if "loss" in line
        ]
        for name in ("one", "two")
    ]
    assert len(losses[0]) == 2 and losses[0] == pytest.approx(losses[1], rel=1e-5)
    probe = f"-a vit_small -b 4 --lr=3 --epochs 2 --pretrained one {data} --out probe"
    run("linear", probe, [*SMALL, *HERE, "--workers", "0", "model.objective.classes=3"], tmp_path)
    made = recipe.load(str(tmp_path / "probe" / "recipe.toml"))
    assert (made.name, made.optimizer.lr, made.batch) == ("main_lincls", 3, 4)


@pytest.mark.framework("paddle")
def test_passls_flags_train_two_steps_under_paddles_launcher(data: Path, tmp_path: Path) -> None:
    python = environments.require("paddle")
    script = ROOT / "backends" / "paddle" / "pretrain.py"
    launcher = [python, "-m", "paddle.distributed.launch", "--nproc_per_node", 2, "--log_dir", "logs", script]
    printed = call([*launcher, "-a", "moco_vit_base", *MOCO.split(), data, *CONTRAST, *HERE, "--out", "run"], tmp_path)
    assert "stopped at step 2 of " in printed
    made = recipe.load(str(tmp_path / "run" / "recipe.toml"))
    assert (made.name, made.batch, made.schedule.epochs) == ("main_moco", 4, 3)
    call([*TRIPORT, "extract-weight", "--input", "run/checkpoints/last", "--output", "encoder.pdparams"], tmp_path)
    assert "a bare encoder" in call([*TRIPORT, "inspect", "encoder.pdparams"], tmp_path)


CONFIG = """
data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_dataloader = dict(batch_size=4, num_workers=0, dataset=dict(type='ImageNet', pipeline=[
    dict(type='LoadImageFromFile'), dict(type='RandomResizedCrop', scale=32, backend='pillow'),
    dict(type='RandomFlip', prob=0.5), dict(type='PackInputs')]))
val_dataloader = dict(batch_size=4, dataset=dict(type='ImageNet', pipeline=[
    dict(type='LoadImageFromFile'), dict(type='ResizeEdge', scale=36, edge='short', backend='pillow'),
    dict(type='CenterCrop', crop_size=32), dict(type='PackInputs')]))
model = dict(type='ImageClassifier', backbone=dict(type='VisionTransformer', img_size=32, patch_size=8,
        arch=dict(embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=64)),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=32, loss=dict(type='CrossEntropyLoss', loss_weight=1.0)))
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=3e-2, weight_decay=0.05))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=2, by_epoch=True, begin=0, end=2)]
train_cfg = dict(by_epoch=True, max_epochs=2)
"""


@pytest.mark.usefixtures("torch")
def test_a_configuration_of_mmpretrain_is_trained_and_tested(data: Path, tmp_path: Path) -> None:
    """`triport train CONFIG`, then `triport test CONFIG CHECKPOINT`: the accuracy is what `evaluate` says."""
    (tmp_path / "small_1xb4.py").write_text(CONFIG)
    more = ["--data", data, "--backend", "torch", "--device", "cpu"]
    train = ["train", "small_1xb4.py", "--work-dir", "w", "--from-scratch", "--no-validate", *more]
    here([*train, "--cfg-options", "train_dataloader.batch_size=6"], tmp_path)
    made = recipe.load(str(tmp_path / "w" / "recipe.toml"))
    assert (made.batch, made.model.encoder.mlp_ratio, made.optimizer.lr) == (6, 2.0, 3e-2)  # type: ignore[union-attr]
    steps = [line for line in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines() if '"lr"' in line]
    assert len(steps) == 4
    here(["test", "small_1xb4.py", "w/checkpoints/last", *more, "--out", "tested.json"], tmp_path)
    here(["evaluate", "w/checkpoints/last", *more, "--out", "evaluated.json"], tmp_path)
    tested, evaluated = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("tested", "evaluated"))
    for name in ("top1", "right", "images", "confusion", "classes"):
        assert tested[name] == evaluated[name]
    assert tested["images"] == 12 and 0 < tested["right"] <= 12


@pytest.mark.usefixtures("torch")
def test_an_override_puts_right_what_flags_or_a_file_leave_wrong(data: Path, tmp_path: Path) -> None:
    """The remedy that an error names works."""
    flags = f"--model vit_base_patch16 --epochs 2 --data_path {data} --nb_classes 3".split()
    module = "triport.backends.torch.finetune"
    answer = run_here.backend(module, [*flags, "--show"], tmp_path)
    assert answer.returncode == 2 and answer.stderr.count("\n") == 1 and len(answer.stderr) < 200
    assert "MAE's main_finetune.py: schedule.warmup_epochs 5 must be below" in answer.stderr
    assert "warmup_epochs = 0.2" in run_here.backend(module, [*flags, "--show", "warmup=0.2"], tmp_path).stdout
    (tmp_path / "odd_1xb4.py").write_text(CONFIG.replace("img_size=32", "img_size=48"))
    answer = run_here.backend(module, ["odd_1xb4.py", "--show"], tmp_path)
    assert answer.returncode == 2 and "The override image=48 sets all sizes at once" in answer.stderr
    assert run_here.backend(module, ["odd_1xb4.py", "--show", "image=48"], tmp_path).returncode == 0
