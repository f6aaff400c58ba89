"""Command lines of the originals and of PASSL's scripts: flag by flag what recipe they become."""

from __future__ import annotations

from typing import Any

import pytest

from triport.core.errors import UserError
from triport.core.options import Task
from triport.core.spec import Classifier, MoCo, Recipe, ResNet, ViT, recipe
from triport.core.spec.foreign import flags
from triport.core.spec.foreign.flag_tables import NAMED, PROGRAMS
from triport.core.spec.foreign.reading import differences

MOCO = "--optimizer=adamw --lr=1.5e-4 --weight-decay=.1 --epochs=300 --warmup-epochs=40 --moco-m-cos --moco-t=.2"
VIT = f"-a vit_small -b 4096 {MOCO} --stop-grad-conv1"
TUNED = "--model vit_base_patch16 --finetune w.pth --epochs 100 --blr 5e-4 --layer_decay 0.65 --drop_path 0.1 "
TUNED += "--reprob 0.25 --mixup 0.8 --cutmix 1.0 --batch_size 32"
MASKED = "--model mae_vit_base_patch16 --norm_pix_loss --mask_ratio 0.75 --epochs 800 --warmup_epochs 40 --blr 1.5e-4"
R50 = "--lr=.6 --moco-m-cos --crop-min=.2"
SAME: list[tuple[Task, str, int, str]] = [  # task, what was typed, processes, the shipped recipe that it is
    ("pretrain", f"{VIT} /data", 8, "moco_v3/vit_small_300ep"),
    ("pretrain", f"{VIT} /data".replace("vit_small", "moco_vit_base"), 8, "moco_v3/vit_base_300ep"),
    ("pretrain", f"-a vit_conv_base {MOCO} /data", 1, "moco_v3/vit_conv_base_300ep"),
    ("pretrain", f"{R50} /data -a resnet50", 1, "moco_v3/resnet50_100ep"),
    ("linear", "-a vit_base --lr=3 --pretrained w.pth.tar /data", 1, "transfer/moco_vit_base_linear"),
    ("linear", "--arch=moco_vit_small --lr=3 --pretrained w /data", 1, "transfer/moco_vit_small_linear"),
    ("pretrain", f"{MASKED} --batch_size 64 --data_path /data", 64, "mae/vit_base_800ep"),
    ("finetune", f"{TUNED} --data_path /data", 32, "transfer/mae_vit_base_finetune"),
    ("finetune", f"{TUNED} --accum_iter 4 --data_path /data".replace("vit_", "maevit_", 1), 8,
     "transfer/mae_vit_base_finetune"),
    ("linear", "--model vit_base_patch16 --cls_token --finetune w", 32, "transfer/mae_vit_base_linear"),
    ("finetune", "--model deit_base_patch16_224 --resume w.pth --epochs 150 --batch-size 128", 8,
     "transfer/moco_vit_base_finetune"),
]  # fmt: skip


def read(task: Task, line: str, processes: int = 1) -> tuple[Recipe, dict[str, Any]]:
    reading, rest = flags.read(task, line.split(), processes)
    assert rest == []
    return reading.recipe, reading.options


@pytest.mark.parametrize(("task", "line", "processes", "name"), SAME)
def test_the_published_command_lines_are_the_shipped_recipes(task: Task, line: str, processes: int, name: str) -> None:
    one, options = read(task, line, processes)
    found = differences(recipe.load(name), one)
    assert [entry for entry in found if "zero_init" not in entry] == [] and one.task == task
    assert options.get("--data", "/data") == "/data"


def test_main_moco_flag_by_flag() -> None:
    line = "-a vit_base -j 12 -b 64 --lr 0.3 --wd 0.02 --momentum 0.8 --epochs 7 --warmup-epochs 2 --moco-dim 8 "
    line += "--moco-mlp-dim 16 --moco-m 0.9 --moco-t 0.5 --crop-min 0.3 --seed 4 --resume r --optimizer lars DIR"
    one, options = read("pretrain", line, 4)
    assert one.model.objective == MoCo(temperature=0.5, momentum=0.9, momentum_cosine=False, hidden=16, dim=8)
    assert isinstance(one.model.encoder, ViT) and not one.model.encoder.frozen_patch
    rule, schedule = one.optimizer, one.schedule
    assert (rule.kind, rule.lr, rule.lr_batch, rule.weight_decay, rule.momentum) == ("lars", 0.3, 256, 0.02, 0.8)
    assert (one.batch, one.seed, schedule.epochs, schedule.warmup_epochs) == (64, 4, 7, 2)
    assert [view[0].min_area for view in one.train.views] == [0.3, 0.3]  # type: ignore[union-attr]
    assert options == {"--data": "DIR", "--workers": 3, "--resume": "r"}
    shallow, _ = read("pretrain", "-a resnet18 D")
    assert isinstance(shallow.model.encoder, ResNet) and shallow.model.encoder.depth == 18
    assert (shallow.batch, shallow.schedule.epochs, shallow.optimizer.lr) == (4096, 100, 0.6)  # its own defaults


def test_maes_flags_one_by_one() -> None:
    line = (
        "--model vit_large_patch16 --batch_size 4 --accum_iter 2 --epochs 6 --lr 0.01 --min_lr 1e-7 --warmup_epochs 1 "
    )
    line += "--weight_decay 0.3 --input_size 112 --drop_path 0.2 --clip_grad 3 --layer_decay 0.9 --smoothing 0.2 "
    line += (
        "--aa rand-m7-n3-mstd0.2-inc1 --reprob 0.1 --mixup 0.3 --cutmix 0.4 --mixup_prob 0.5 --mixup_switch_prob 0.6 "
    )
    line += "--cls_token --nb_classes 9 --output_dir o --device cpu --seed 3 --num_workers 5 --data_path d"
    one, options = read("finetune", line, 2)
    head = Classifier(classes=9, pooling="token", head_std=2e-5)
    assert one.model.objective == head and one.model.encoder.image == (112, 112)
    assert isinstance(one.model.encoder, ViT) and (one.model.encoder.width, one.model.encoder.drop_path) == (1024, 0.2)
    rule, mix = one.optimizer, one.mix
    assert (one.batch, rule.lr, rule.lr_batch, rule.weight_decay) == (16, 0.01, 16, 0.3)
    assert (rule.clip_norm, rule.layer_decay) == (3.0, 0.9)
    assert (one.schedule.epochs, one.schedule.min_lr, one.schedule.warmup_epochs, one.seed) == (6, 1e-7, 1, 3)
    assert (mix.mixup, mix.cutmix, mix.probability, mix.switch, mix.smoothing) == (0.3, 0.4, 0.5, 0.6, 0.2)
    rand, erase = one.train.views[0][2:]
    assert (rand.magnitude, rand.operations, rand.deviation, erase.p) == (7, 3, 0.2, 0.1)  # type: ignore[union-attr]
    wanted = {"--data": "d", "--out": "o", "--device": "cpu", "--workers": 5, "--accumulate": 2, "--from-scratch": True}
    assert options == wanted


def test_deits_flags_one_by_one() -> None:
    line = "--model deit_small_patch16_224 --batch-size 16 --unscale-lr --lr 0.02 --warmup-lr 1e-4 --min-lr 1e-3 "
    line += "--finetune w --warmup-epochs 3 --no-repeated-aug --opt-betas 0.8 0.9 --opt-eps 1e-6 --eval-crop-ratio 0.8 "
    line += "--weight-decay 0.1"
    one, options = read("finetune", line, 2)
    assert isinstance(one.model.encoder, ViT) and (one.model.encoder.width, one.model.encoder.heads) == (384, 6)
    rule, schedule = one.optimizer, one.schedule
    assert (one.batch, rule.lr, rule.lr_batch, rule.betas, rule.eps) == (32, 0.02, 32, (0.8, 0.9), 1e-6)
    assert (rule.weight_decay, schedule.warmup_lr, schedule.min_lr, schedule.warmup_epochs) == (0.1, 1e-4, 1e-3, 3)
    assert one.data.repeats == 1 and one.evaluate.views[0][0].size == 280  # type: ignore[union-attr]
    assert options["--weights"] == "w" and schedule.epochs == 300


def test_flags_without_a_counterpart_are_named_and_own_words_go_on() -> None:
    line = (
        f"{VIT} --dist-url tcp://localhost:10001 --multiprocessing-distributed --world-size 2 --rank 1 /data --out o "
    )
    reading, rest = flags.read("pretrain", [*line.split(), "batch=8", "--precision", "bfloat16"])
    assert rest == ["batch=8", "--out", "o", "--precision", "bfloat16"] and reading.options == {"--data": "/data"}
    printed = "\n".join(reading.notes)
    for flag in ("--dist-url", "--multiprocessing-distributed", "--world-size = 2", "--rank = 1"):
        assert flag in printed
    assert "--processes N" in printed


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_flag_of_a_program_is_used_named_or_refused(name: str) -> None:
    """Each flag, changed alone, changes the recipe, the options or what is said, or is refused."""
    program = PROGRAMS[name]
    start = ["--arch", "vit_base", "D"] if program.positional else ["--model", "deit_base_patch16_224"]
    if program.project == "MAE":
        start = ["--model", "mae_vit_base_patch16" if program.task == "pretrain" else "vit_base_patch16"]
    plain, _ = flags.read(program.task, start, 2)
    for names, more in program.flags:
        flag = names[-1]
        if flag in ("--arch", "--model", "--data") or more.get("dest") == "global_pool":
            continue
        usual = more.get("default")
        switch = more.get("action") in ("store_true", "store_false")
        words = [flag] if switch else [flag, *another(usual, more)]
        if switch and usual is (more["action"] == "store_true"):
            continue  # says what is so already
        try:
            changed, _ = flags.read(program.task, [*words, *start], 2)
        except UserError:
            continue
        same = (changed.recipe, changed.options, changed.notes) == (plain.recipe, plain.options, plain.notes)
        assert not same or flag.lstrip("-").replace("-", "_") in NAMED, flag


def another(usual: Any, more: dict[str, Any]) -> list[str]:
    if "choices" in more:
        return [next(choice for choice in more["choices"] if choice != usual)]
    if more.get("type") is None:
        return ["other"]
    value = 3 if usual is None else usual + 1 if more["type"] is int else usual / 2 or 0.5
    count = more.get("nargs")
    return [str(value)] * (2 if count in (2, "+") else 1)


@pytest.mark.parametrize(
    ("task", "line", "printed"),
    [
        ("pretrain", "-a vit_bas D", "--arch vit_bas is not known here. Did you mean 'vit_base'?"),
        ("pretrain", "-a vit_conv_base --stop-grad-conv1 D", "leave it out with a convolutional stem"),
        ("linear", "-a vit_base -e D", "measure with `triport evaluate"),
        ("evaluate", "-a vit_base D", "--arch does not go with `triport evaluate`"),
        ("finetune", "--model vit_base_patch14", "Did you mean 'vit_base_patch16'?"),
        ("finetune", "--model vit_base_patch16 --aa original", "rand-m9-mstd0.5-inc1"),
        ("finetune", "--model vit_base_patch16 --remode const", "--remode const: here it can only be pixel"),
        ("finetune", "--model deit_base_patch16_224 --opt sgd", "--opt sgd: here it can only be adamw"),
        ("finetune", "--model deit_base_distilled_patch16_224", "is not known here"),
        ("pretrain", "--model deit_base_patch16_224", "does not go with `triport pretrain`"),
        ("pretrain", "--model mae_vit_base_patch16 --epochs many", "many"),
        (
            "pretrain",
            "--model mae_vit_base_patch16 --norm_pix_los",
            "Did you mean '--norm_pix_loss'?",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(task: Task, line: str, printed: str) -> None:
    with pytest.raises(UserError) as error:
        flags.read(task, line.split())
    assert printed in str(error.value) and "\n" not in str(error.value)


def test_a_command_line_of_this_suite_is_left_alone() -> None:
    for words in (["tiny/test_moco_vit", "lr=1e-3"], ["--weights", "a", "x"], ["--models"], []):
        assert flags.program_of("pretrain", words) is None
