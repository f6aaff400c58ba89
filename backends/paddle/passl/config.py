"""PASSL's YAML files of DeiT fine-tuning as recipes: triport finetune --passl-config FILE -o Global.epochs=150 ...

Every setting is carried over, refused, or named as one that has no counterpart here. Options that stand on the command
line as well (--data, --weights, --out, --device, ...) go before the file's.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triport.backends.paddle import distributed, learner
from triport.backends.paddle.passl import learner as passl_learner
from triport.backends.paddle.passl.settings import Settings, read
from triport.backends.paddle.passl.transforms import augmentation, mixing
from triport.backends.paddle.runtime import paddle
from triport.core.errors import UserError
from triport.core.options import Parser
from triport.core.run import run
from triport.core.spec import Classifier, DataSpec, ModelSpec, MonitorSpec, OptimizerSpec, Recipe, ScheduleSpec, ViT
from triport.core.spec.recipe import parse, to_toml

MODELS = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}  # width, heads
UNDECAYED = {"cls_token", "pos_embed", "norm", "bias"}


# ---------------------------------------------------------------- the recipe
def recipe(settings: Settings, processes: int) -> Recipe:
    """The recipe that the settings describe for so many processes, each with the file's batch."""
    s = settings
    batch = s.whole("DataLoader.Train.sampler.batch_size") * processes
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
        mix=mixing(s, objective.classes),
        monitor=MonitorSpec(
            evaluate_every=s.whole("Global.eval_interval", 1) if watched else 10**6,
            save_every=s.whole("Global.save_interval", 1),
        ),
        seed=s.whole("Global.seed", 0),
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
    classes = s.whole("Model.class_num", s.take("Model.num_classes", 1000))
    encoder = ViT(
        width=width,
        depth=12,
        heads=heads,
        position="moco",
        initial_values="timm",
        image=(side, side),
        trainable_position=True,
        drop_path=s.number("Model.drop_path_rate", 0.0),
    )
    return encoder, Classifier(classes=classes, pooling="token", head_std=0.002)


def optimizer(s: Settings, batch: int) -> OptimizerSpec:
    """AdamW; PASSL's learning rate is that of the whole batch."""
    s.only("Optimizer.name", "AdamW")
    for name in ("use_master_param", "exp_avg_force_fp32"):
        if not s.take(f"Optimizer.{name}", True):
            s.remarks.append(f"Optimizer.{name} = False: weights and moments are float32 here")
    undecayed = set(s.take("Optimizer.no_weight_decay_name", []))
    if undecayed not in (set(), UNDECAYED):
        raise UserError(f"{s.path}: Optimizer.no_weight_decay_name can be {sorted(UNDECAYED)} or nothing here")
    one, two = s.numbers("Optimizer.betas", 2, (0.9, 0.999))
    clips = bool(s.inside("Optimizer.grad_clip"))
    s.only("Optimizer.grad_clip.name", "ClipGradByGlobalNorm")
    return OptimizerSpec(
        kind="adamw",
        lr=s.number("LRScheduler.learning_rate"),
        lr_batch=batch,
        weight_decay=s.number("Optimizer.weight_decay", 0.0),
        decays="matrices_but_tokens" if undecayed else "all",
        betas=(one, two),
        eps=s.number("Optimizer.eps", 1e-8),
        clip_norm=s.number("Optimizer.grad_clip.clip_norm") if clips else None,
    )


def schedule(s: Settings) -> ScheduleSpec:
    """TimmCosine: a cosine over all epochs with the warm-up laid over its beginning, or, by choice, after it."""
    s.only("LRScheduler.name", "TimmCosine")
    unit = s.take("LRScheduler.decay_unit")
    if unit not in ("step", "epoch"):
        raise UserError(f"{s.path}: LRScheduler.decay_unit is '{unit}': take step or epoch")
    epochs, warmup = s.whole("Global.epochs"), s.number("LRScheduler.warmup_epoch", 0)
    if warmup >= epochs > 0:
        shorter = f"-o LRScheduler.warmup_epoch={epochs / 10:g}"
        raise UserError(f"{s.path}: warm-up takes {warmup:g} of {epochs} epochs: shorten it, {shorter}")
    return ScheduleSpec(
        epochs=epochs,
        warmup_epochs=warmup,
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
    "DataLoader.Train.dataset.root": "--data goes before it",
    "DataLoader.Eval.dataset.root": "--data goes before it",
    "DataLoader.Train.dataset.image_root": "--data goes before it",
    "DataLoader.Eval.dataset.image_root": "--data goes before it",
    "DataLoader.Train.dataset.cls_label_path": "the folders in train are the classes",
    "DataLoader.Eval.dataset.cls_label_path": "the folders in val are the classes",
    "DataLoader.Train.sampler.drop_last": "the last images of an epoch that fill no batch are left out",
    "DataLoader.Train.loader": "batches always come through shared memory",
    "DataLoader.Eval.sampler": "every image is evaluated once, in batches as large as training's",
    "DataLoader.Eval.loader": "as for training (--workers N)",
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
        made = parse(to_toml(recipe(settings, processes)), path)  # which looks at every number
        make = half(settings, [*given, *options])
    except UserError as error:
        print(f"triport: error: {error}", file=sys.stderr)
        return 2
    name_the_rest(settings)
    if rank == 0 and "--quiet" not in given:
        print("\n  ".join([f"{path.name}: settings that are otherwise here:", *settings.remarks]), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{made.name}.toml"
        file.write_text(to_toml(made), encoding="utf-8")
        return run.finetune([str(file), *given, *options], backend=run.Backend("paddle", distributed.start, make))


def name_the_rest(settings: Settings) -> None:
    """Say of each setting that is left what becomes of it."""
    for key, why in ELSEWHERE.items():
        settings.forget(key, why)


def half(s: Settings, options: Sequence[str]) -> Any:
    """Return how the learner is made: in float16 with loss scaling where the file wants it and there is a GPU."""
    level, first = s.take("FP16.level", "O0"), passl_learner.FIRST_SCALE
    if level not in ("O0", "O1", "O2"):
        raise UserError(f"{s.path}: FP16.level {level} is not known here: O1 is, or O0 for float32")
    why = ""
    if any(word.startswith("--precision") for word in options):
        why = "--precision goes before it"
    elif not paddle.is_compiled_with_cuda() or {"cpu", "--device=cpu"}.intersection(options):
        why = "Paddle computes in float32 on CPUs"
    if level == "O0" or why:
        if level != "O0":
            s.remarks.append(f"FP16.level = {level}: {why}")
        s.forget("FP16.GradScaler", "there is no loss to scale")
        return learner.make
    s.remarks.append(f"FP16.level = {level}: float16 with loss scaling, weights in float32; not tried on a GPU yet")
    if s.number("FP16.GradScaler.init_loss_scaling", first) != first:
        s.remarks.append(f"FP16.GradScaler.init_loss_scaling: the scale begins at {first} whatever it says")
    return passl_learner.make


def split(argv: Sequence[str]) -> tuple[Path, list[str], list[str]]:
    """Return the file that --passl-config names, the -o overrides, and all other words."""
    p = Parser(prog="triport finetune", add_help=False, allow_abbrev=False)
    p.add_argument("--passl-config", metavar="FILE", type=Path)
    p.add_argument("-o", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    found, words = p.parse_known_args(list(argv))
    if found.passl_config is None:
        raise UserError("-o goes with --passl-config FILE; overrides of a recipe are plain key=value words")
    return found.passl_config, found.overrides, words


def data(s: Settings) -> str | None:
    """The folder that holds both splits, train and val."""
    folders = []
    for split, name in (("Train", "train"), ("Eval", "val")):
        root = Path(s.take(f"DataLoader.{split}.dataset.root", Path("nowhere", name)))
        folders += [str(s.take(f"DataLoader.{split}.dataset.image_root", root.parent))]
        if root.name != name:
            raise UserError(f"{s.path}: the split {root} has to be called {name} here: name a folder with --data")
    if len(set(folders)) > 1:
        raise UserError(f"{s.path}: the splits lie in different folders, {' and '.join(folders)}: take --data")
    return None if folders[0] == "nowhere" else str(Path(folders[0]))


def words(settings: Settings, given: Sequence[str]) -> list[str]:
    """The command line's options that the settings stand for, where they are not given already."""
    s, wanted = settings, dict[str, Any]()
    given = [word.partition("=")[0] for word in given]
    wanted["--data"] = None if "--data" in given else data(s)
    weights = s.take("Global.pretrained_model", None)
    wanted["--weights"] = weights and next((w for w in (f"{weights}.pdparams", weights) if Path(w).exists()), weights)
    wanted["--resume"] = s.take("Global.checkpoint", None)
    wanted["--out"] = str(Path(s.take("Global.output_dir", "output"), str(s.left.get("Model.name", "DeiT"))))
    wanted["--device"] = s.take("Global.device", None)
    wanted["--workers"] = s.take("DataLoader.Train.loader.num_workers", None)
    pieces = s.whole("Global.accum_steps", 1)
    wanted["--accumulate"] = pieces if pieces > 1 and "--micro-batch" not in given else None
    if wanted["--resume"] or "--resume" in given:
        wanted["--out"] = None
    return [w for key, value in wanted.items() if value is not None and key not in given for w in (key, str(value))]
