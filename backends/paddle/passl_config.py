"""PASSL's YAML files of DeiT fine-tuning as recipes: triport finetune --passl-config FILE -o Global.epochs=150 ...

Every setting is carried over, refused, or named as one that has no counterpart here. Options that stand on the command
line as well (--data, --weights, --out, --device, ...) go before the file's.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backends.paddle import distributed, learner, passl_learner
from backends.paddle.passl_settings import Settings, literal, read
from backends.paddle.passl_transforms import augmentation, mixing
from backends.paddle.quiet import paddle
from core import run
from core.errors import UserError
from core.recipe import to_toml
from core.spec import Classifier, DataSpec, ModelSpec, MonitorSpec, OptimizerSpec, Recipe, ScheduleSpec, ViT

MODELS = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}  # width, heads
UNDECAYED = {"cls_token", "pos_embed", "norm", "bias"}


# ---------------------------------------------------------------- the recipe
def recipe(settings: Settings, processes: int) -> Recipe:
    """The recipe that the settings describe for so many processes, each with the file's batch."""
    s = settings
    batch = int(s.number("DataLoader.Train.sampler.batch_size")) * processes
    encoder, objective = model(s)
    train, evaluate = augmentation(s, "DataLoader.Train"), augmentation(s, "DataLoader.Eval")
    for split in ("Train", "Eval"):
        s.only(f"Loss.{split}.0.CELoss.weight", 1.0)
    sampler = s.take("DataLoader.Train.sampler.name", "DistributedBatchSampler")
    if sampler not in ("RepeatedAugSampler", "DistributedBatchSampler"):
        raise UserError(f"{s.path}: the sampler {sampler} is not known here")
    s.only("DataLoader.Train.sampler.shuffle", True)
    watched = s.take("Global.eval_during_train", True)
    return Recipe(
        name=re.sub(r"[^\w.-]", "_", s.path.stem),
        title=f"Fine-tuning of {s.path.name} (PASSL)",
        source=f"PaddlePaddle/PASSL {s.path.name}",
        task="finetune",
        model=ModelSpec(encoder=encoder, objective=objective),
        train=train,
        evaluate=evaluate,
        optimizer=optimizer(s, batch),
        schedule=schedule(s),
        data=DataSpec(name="imagenet", repeats=3 if sampler == "RepeatedAugSampler" else 1),
        batch=batch,
        mix=mixing(s),
        monitor=MonitorSpec(
            evaluate_every=int(s.number("Global.eval_interval", 1)) if watched else 10**6,
            save_every=int(s.number("Global.save_interval", 1)),
        ),
        seed=int(s.number("Global.seed", 0)),
    )


def model(s: Settings) -> tuple[ViT, Classifier]:
    """PASSL's DeiT: drawn with a deviation of 0.002, a tenth of the original's."""
    name = s.take("Model.name")
    found = re.fullmatch(r"DeiT_(tiny|small|base)_patch16_(224|384)", str(name))
    if not found:
        raise UserError(
            f"{s.path}: the model {name} is not known here: DeiT_{{tiny,small,base}}_patch16_{{224,384}} are"
        )
    s.only("Model.drop_rate", 0.0)
    (width, heads), side = MODELS[found[1]], int(found[2])
    classes = int(s.number("Model.class_num", s.take("Model.num_classes", 1000)))
    encoder = ViT(
        width=width,
        depth=12,
        heads=heads,
        position="moco",
        first_values="timm",
        image=(side, side),
        trainable_position=True,
        drop_path=s.number("Model.drop_path_rate", 0.0),
    )
    return encoder, Classifier(classes=classes, pooling="token", head_std=0.002)


def optimizer(s: Settings, batch: int) -> OptimizerSpec:
    """AdamW; PASSL's learning rate is that of the whole batch."""
    s.only("Optimizer.name", "AdamW")
    s.only("Optimizer.use_master_param", True)  # weights and moments are float32 here
    s.only("Optimizer.exp_avg_force_fp32", True)
    undecayed = set(s.take("Optimizer.no_weight_decay_name", []))
    if undecayed not in (set(), UNDECAYED):
        raise UserError(f"{s.path}: Optimizer.no_weight_decay_name can be {sorted(UNDECAYED)} or nothing here")
    betas = literal(s.take("Optimizer.betas", (0.9, 0.999)))
    clip = s.take("Optimizer.grad_clip.name", None)
    if clip not in (None, "ClipGradByGlobalNorm"):
        raise UserError(f"{s.path}: gradients can only be clipped by ClipGradByGlobalNorm here, not {clip}")
    return OptimizerSpec(
        kind="adamw",
        lr=s.number("LRScheduler.learning_rate"),
        lr_batch=batch,
        weight_decay=s.number("Optimizer.weight_decay", 0.01),
        decays="matrices_but_tokens" if undecayed else "all",
        betas=(float(betas[0]), float(betas[1])),
        eps=s.number("Optimizer.eps", 1e-8),
        clip_norm=s.number("Optimizer.grad_clip.clip_norm") if clip else None,
    )


def schedule(s: Settings) -> ScheduleSpec:
    """TimmCosine: a cosine over all epochs with the warm-up laid over its beginning, or, by choice, after it."""
    s.only("LRScheduler.name", "TimmCosine")
    unit = s.take("LRScheduler.decay_unit")
    if unit not in ("step", "epoch"):
        raise UserError(f"{s.path}: LRScheduler.decay_unit is '{unit}': take step or epoch")
    return ScheduleSpec(
        epochs=int(s.number("Global.epochs")),
        warmup_epochs=s.number("LRScheduler.warmup_epoch", 0),
        warmup_lr=s.number("LRScheduler.warmup_start_lr", 0.0),
        min_lr=s.number("LRScheduler.eta_min", 0.0),
        per=unit,
        cosine="after_warmup" if s.take("LRScheduler.warmup_prefix", False) else "whole",
    )


# What else such a file says, and what becomes of it
ELSEWHERE = {
    "Global.task_type": "this is fine-tuning",
    "Global.train_loop": "this is fine-tuning",
    "Global.validate_loop": "this is fine-tuning",
    "Global.finetune": "this is fine-tuning",
    "Global.eval_unit": "evaluation comes after epochs",
    "Global.max_num_latest_checkpoint": "monitor.keep=N says how many checkpoints are kept",
    "Global.print_batch_step": "every step is shown and recorded",
    "Global.use_visualdl": "TensorBoard events are always written",
    "DistributedStrategy": "the launcher says how many processes share the batch",
    "DataLoader.Train.sampler.drop_last": "the last images of an epoch that fill no batch are left out",
    "DataLoader.Train.loader": "images are prepared by all cores (--workers N)",
    "DataLoader.Eval.sampler": "every image is evaluated once, in batches as large as training's",
    "DataLoader.Eval.loader": "images are prepared by all cores (--workers N)",
    "Metric": "top-1, top-5 and the mean over classes are measured",
    "Export": "triport convert writes other forms",
    "": "not known here, without effect",
}


# ---------------------------------------------------------------- the command line
def finetune(argv: Sequence[str]) -> int:
    """Fine-tune as --passl-config FILE says; return the exit code."""
    rank, processes = (int(os.environ.get(f"PADDLE_TRAINER{name}", n)) for name, n in (("_ID", 0), ("S_NUM", 1)))
    try:
        path, overrides, given = split(argv)
        settings = read(path, overrides)
        options = words(settings, given)
        made = recipe(settings, processes)
        make = half(settings, [*given, *options])
    except UserError as error:
        print(f"triport: error: {error}", file=sys.stderr)
        return 2
    for key, why in ELSEWHERE.items():
        settings.forget(key, why)
    for remark in settings.remarks if rank == 0 and "--quiet" not in given else []:
        print(f"{path.name}: {remark}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{made.name}.toml"
        file.write_text(to_toml(made), encoding="utf-8")
        return run.finetune([str(file), *given, *options], backend=run.Backend("paddle", distributed.start, make))


def half(s: Settings, options: Sequence[str]) -> Any:
    """Return how the learner is made: in float16 with loss scaling where the file wants it and there is a GPU."""
    level = s.take("FP16.level", "O0")
    if level not in ("O0", "O1"):
        raise UserError(f"{s.path}: FP16.level {level} is not known here: O1 is, or O0 for float32")
    scale = s.number("FP16.GradScaler.init_loss_scaling", passl_learner.FIRST_SCALE)
    if level == "O1" and scale != passl_learner.FIRST_SCALE:
        s.remarks.append(
            f"FP16.GradScaler.init_loss_scaling = {scale}: the scale begins at {passl_learner.FIRST_SCALE}"
        )
    if level == "O1" and not (paddle.is_compiled_with_cuda() and "cpu" not in options):
        s.remarks.append("FP16.level = O1: Paddle computes in float32 on CPUs")
        return learner.make
    return passl_learner.make if level == "O1" else learner.make


def split(argv: Sequence[str]) -> tuple[Path, list[str], list[str]]:
    """Return the file that --passl-config names, the -o overrides, and all other words."""
    p = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    p.add_argument("--passl-config", metavar="FILE", type=Path)
    p.add_argument("-o", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    found, words = p.parse_known_args(list(argv))
    if found.passl_config is None:
        raise UserError("-o goes with --passl-config FILE; overrides of a recipe are plain key=value words")
    return found.passl_config, found.overrides, words


def words(settings: Settings, given: Sequence[str]) -> list[str]:
    """The command line's options that the settings stand for, where they are not given already."""
    s, wanted = settings, dict[str, Any]()
    roots = [s.take(f"DataLoader.{split}.dataset.root", None) for split in ("Train", "Eval")]
    if None not in roots:
        parents = {str(Path(root).parent) for root in roots}
        wanted["--data"] = parents.pop() if len(parents) == 1 else None
        if wanted["--data"] is None and "--data" not in given:
            raise UserError(f"{s.path}: the two splits {roots} lie in different folders: name their parent with --data")
    weights = s.take("Global.pretrained_model", None)
    wanted["--weights"] = weights and next((w for w in (f"{weights}.pdparams", weights) if Path(w).exists()), weights)
    wanted["--resume"] = s.take("Global.checkpoint", None)
    wanted["--out"] = str(Path(s.take("Global.output_dir", "output"), str(s.left.get("Model.name", "DeiT"))))
    wanted["--device"] = s.take("Global.device", None)
    wanted["--workers"] = s.take("DataLoader.Train.loader.num_workers", None)
    pieces = int(s.number("Global.accum_steps", 1))
    wanted["--accumulate"] = pieces if pieces > 1 and "--micro-batch" not in given else None
    if wanted["--resume"] or "--resume" in given:
        wanted["--out"] = None
    return [w for key, value in wanted.items() if value is not None and key not in given for w in (key, str(value))]
