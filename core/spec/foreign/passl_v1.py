"""PASSL's older YAML format (configs/**, names in lower case) rewritten in the names of the newer one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triport.core.errors import UserError
from triport.core.spec.foreign.settings import literal

KNOWN = ("DeiTWrapper", "MAE_PRETRAIN", "MAE_FINETUNE")
Table = dict[str, Any]


def modern(path: Path, old: Mapping[str, Any]) -> tuple[Table, list[str]]:
    """Return the file in the newer format, and lines about what was understood in one of several ways."""
    name = str((old.get("model") or {}).get("name"))
    if name not in KNOWN:
        raise UserError(
            f"{path}: the model {name} (PASSL's older format) is not known here: triport has MoCo v3 and MAE; of "
            f"that format {', '.join(KNOWN)} are read"
        )
    left, remarks = dict(old), list[str]()
    glob: Table = {key: left.pop(key) for key in ("epochs", "output_dir", "seed", "device") if key in left}
    checkpoint = dict(left.pop("checkpoint", {}))
    glob["save_interval"] = checkpoint.get("interval", 1)
    new: Table = {"Global": glob, "Model": _model(left.pop("model")), "DataLoader": _loaders(left.pop("dataloader"))}
    new["LRScheduler"] = _scheduler(path, left, glob, remarks)
    new["Optimizer"] = _optimizer(left.pop("optimizer"))
    if left.pop("use_amp", False):
        level = literal((left.get("AMP") or {}).get("level", "O1"))
        new["FP16"] = {"level": level, "GradScaler": {"init_loss_scaling": (left.get("AMP") or {}).get("scale_loss")}}
        left.pop("AMP", None)
    rest = {key: value for key, value in {**left, "checkpoint": checkpoint}.items() if value}
    if rest:
        remarks.append(f"{', '.join(rest)}: how runs are logged, saved and scored is the run's own way")
    return new, remarks


def _model(old: Mapping[str, Any]) -> Table:
    inside = {**dict(old.get("architecture", {})), **dict(old.get("head", {}))}
    inside.pop("name", None)
    if "num_classes" in inside:
        inside["class_num"] = inside.pop("num_classes")
    return {"name": f"v1 {old['name']}", **inside}


def _loaders(old: Mapping[str, Any]) -> Table:
    return {new: _loader(old[name]) for name, new in (("train", "Train"), ("val", "Eval")) if name in old}


def _loader(old: Mapping[str, Any]) -> Table:
    dataset, sampler = dict(old["dataset"]), dict(old.get("sampler", {}))
    repeated = sampler.get("name") == "DistributedRepeatedAugSampler"
    sampler["name"] = "RepeatedAugSampler" if repeated else "DistributedBatchSampler"
    new: Table = {"name": "ImageFolder", "root": str(dataset.get("dataroot", "")).rstrip("/")}
    steps = [_transform(dict(step)) for step in dataset.get("transforms", [])]
    new["transform"] = [step for step in steps if step]
    mixers = [_mixer(dict(step)) for step in dataset.get("batch_transforms", [])]
    if mixers:
        new["batch_transform"] = mixers
    return {"dataset": new, "sampler": sampler, "loader": dict(old.get("loader", {}))}


def _transform(step: Table) -> Table:
    """One transform in the newer format; {} for what only moves bytes."""
    name = str(step.pop("name"))
    step.pop("return_type", None)
    if name in ("ToRGB", "Transpose"):
        return {}
    if name == "AutoAugment":
        return {"TimmAutoAugment": step}
    if name == "Normalize" and max(map(float, step.get("mean", [0]))) > 1:
        step.pop("data_format", None)
        scaled = {part: [float(f"{float(value) / 255:.6g}") for value in step[part]] for part in ("mean", "std")}
        return {"NormalizeImage": scaled}
    if name == "RandomErasing":
        names = {"prob": "EPSILON", "min_area": "sl", "max_area": "sh", "min_aspect": "r1"}
        usual = {"sl": 0.02, "sh": 1 / 3, "r1": 0.3, "use_log_aspect": True, "attempt": 10}
        if step.pop("max_count", 1) != 1:
            step["max_count"] = "more than one"
        return {name: {**usual, **{names.get(key, key): value for key, value in step.items()}}}
    return {name: step}


def _mixer(step: Table) -> Table:
    """timm's Mixup as the newer format's choice of Mixup and Cutmix."""
    if step.get("name") != "Mixup" or step.get("mode", "batch") != "batch":
        return {str(step.get("name")): step}
    whole, switch = float(step.get("prob", 1.0)), float(step.get("switch_prob", 0.5))
    more = {"epsilon": step.get("label_smoothing", 0.1), "class_num": step.get("num_classes", 1000)}
    both = {
        "Mixup": {"alpha": step.get("mixup_alpha", 1.0), "prob": whole * (1 - switch), **more},
        "Cutmix": {"alpha": step.get("cutmix_alpha", 0.0), "prob": whole * switch, **more},
    }
    return {"TransformOpSampler": {key: value for key, value in both.items() if float(value["alpha"] or 0)}}


def _scheduler(path: Path, left: Table, glob: Table, remarks: list[str]) -> Table:
    old, unit = dict(left.pop("lr_scheduler")), (left.pop("lr_config", None) or {}).get("unit")
    inner = old.get("learning_rate")
    if not isinstance(inner, dict):
        if old.pop("T_max", glob.get("epochs")) != glob.get("epochs"):
            raise UserError(f"{path}: lr_scheduler.T_max is not the number of epochs; here the cosine spans the run")
        return {"decay_unit": "epoch" if unit == "epoch" else "step", **old}
    if old.get("name") != "LinearWarmup" or inner.get("name") != "CosineAnnealingDecay":
        raise UserError(f"{path}: lr_scheduler {old.get('name')} of {inner.get('name')} is not known here")
    if inner.get("T_max") != glob.get("epochs"):
        raise UserError(f"{path}: lr_scheduler.learning_rate.T_max is not the number of epochs; here it has to be")
    if unit != "epoch":
        remarks.append("lr_scheduler.warmup_steps and T_max are taken as epochs, as T_max equals epochs")
    peak = float(inner["learning_rate"])
    end = float(old.get("end_lr", peak))
    if peak != end:
        remarks.append(
            f"lr_scheduler.end_lr = {end:g}: PASSL warms up to it and falls to {peak:g} at once; here the warm-up ends "
            f"at {peak:g}"
        )
    remarks.append("lr_scheduler: PASSL's cosine outlasts the run by the warm-up; here it ends with the run")
    return {
        "name": "TimmCosine",
        "learning_rate": peak,
        "eta_min": inner.get("eta_min", 0.0),
        "warmup_epoch": old.get("warmup_steps", 0),
        "warmup_start_lr": old.get("start_lr", 0.0),
        "warmup_prefix": True,
        "decay_unit": "step" if unit == "iter" else "epoch",
    }


def _optimizer(old: Mapping[str, Any]) -> Table:
    new = dict(old)
    betas = (float(new.pop("beta1", 0.9)), float(new.pop("beta2", 0.999)))
    names = {"epsilon": "eps", "exclude_from_weight_decay": "no_weight_decay_name"}
    return {"betas": str(betas), **{names.get(key, key): value for key, value in new.items()}}
