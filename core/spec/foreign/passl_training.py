"""PASSL's optimiser, schedule, weights and paths as those of a recipe and a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triport.core.errors import UserError
from triport.core.spec.foreign.settings import Settings
from triport.core.spec.spec import OptimizerSpec, ScheduleSpec

# names that PASSL's optimiser spares weight decay -> the recipe's rule
UNDECAYED = {
    frozenset[str](): "all",
    frozenset({"cls_token", "pos_embed", "norm", "bias"}): "matrices_but_tokens",
    frozenset({"cls_token", "pos_embed", "norm"}): "all_but_norms_and_tokens",
}


def optimizer(s: Settings, batch: int) -> OptimizerSpec:
    """AdamW or Momentum; PASSL's learning rate is that of the whole batch."""
    kind = s.one_of("Optimizer.name", ("AdamW", "Momentum"))
    for name in ("use_master_param", "exp_avg_force_fp32"):
        if not s.take(f"Optimizer.{name}", True):
            s.remarks.append(f"Optimizer.{name} = False: weights and moments are float32 here")
    spared = frozenset(str(name).strip(".") for name in s.take("Optimizer.no_weight_decay_name", []))
    if spared not in UNDECAYED:
        choices = ", or ".join(str(sorted(names)) for names in UNDECAYED if names)
        raise UserError(f"{s.path}: Optimizer.no_weight_decay_name can be {choices}, or nothing here")
    first, second = s.numbers("Optimizer.betas", 2, (0.9, 0.999))
    clips = bool(s.inside("Optimizer.grad_clip"))
    s.only("Optimizer.grad_clip.name", "ClipGradByGlobalNorm")
    return OptimizerSpec(
        kind="adamw" if kind == "AdamW" else "sgd",
        lr=s.number("LRScheduler.learning_rate"),
        lr_batch=batch,
        weight_decay=s.number("Optimizer.weight_decay", 0.0),
        decays=UNDECAYED[spared],  # type: ignore[arg-type]
        betas=(first, second),
        eps=s.number("Optimizer.eps", 1e-8),
        momentum=s.number("Optimizer.momentum", 0.9),
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


def options(s: Settings, model: str, given: Sequence[str] = ()) -> dict[str, Any]:
    """The command line's options that the settings stand for; `given` words go before them."""
    own, wanted = [word.partition("=")[0] for word in given], dict[str, Any]()
    wanted["--data"] = None if "--data" in own else data(s)
    pretrains = "pretrain" in model.lower()
    weights = None if pretrains else s.take("Global.pretrained_model", None)
    if {"--weights", "--from-scratch"} & set(own) and weights:
        s.remarks.append(f"Global.pretrained_model = {weights}: --weights or --from-scratch goes before it")
        weights = None
    wanted["--weights"] = weights and next((w for w in (f"{weights}.pdparams", weights) if Path(w).exists()), weights)
    wanted["--resume"] = s.take("Global.checkpoint", None)
    folder = Path(s.take("Global.output_dir", "output"), model.replace(" ", "_"))
    wanted["--out"] = str(folder)
    wanted["--device"] = s.take("Global.device", None)
    wanted["--workers"] = s.take("DataLoader.Train.loader.num_workers", None)
    pieces = s.whole("Global.accum_steps", 1)
    wanted["--accumulate"] = pieces if pieces > 1 and "--micro-batch" not in own else None
    if wanted["--resume"] or "--resume" in own:
        wanted["--out"] = None
    return {key: value for key, value in wanted.items() if value not in (None, "")}


def data(s: Settings) -> str | None:
    """The folder that holds both splits, train and val."""
    folders = []
    for split, name in (("Train", "train"), ("Eval", "val")):
        if not s.has(f"DataLoader.{split}"):
            continue
        root = Path(s.take(f"DataLoader.{split}.dataset.root", Path("nowhere", name)))
        folders += [str(Path(s.take(f"DataLoader.{split}.dataset.image_root", root.parent)))]
        if root.name != name:
            raise UserError(f"{s.path}: the split {root} has to be called {name} here: name a folder with --data")
    if len(set(folders)) > 1:
        raise UserError(f"{s.path}: the splits lie in different folders, {' and '.join(folders)}: take --data")
    return None if not folders or folders[0] == "nowhere" else folders[0]
