"""What the flags of the originals' programs mean: the shipped recipe of the same model, overrides of it, options."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from triport.core.errors import UserError, closest

ARCHITECTURES = {"vit_small": 12, "vit_base": 12, "vit_conv_small": 11, "vit_conv_base": 11}  # blocks
DEIT = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}  # width, heads
Overrides = list[str]


# ---------------------------------------------------------------- moco-v3
def _encoder(arch: str, folder: str) -> tuple[str, Overrides]:
    """The shipped recipe of an architecture of moco-v3 (PASSL writes moco_ before it), and what it changes."""
    short = arch.removeprefix("moco_")
    depth = re.fullmatch(r"resnet(18|34|50|101)", short)
    if depth:
        return ("moco_v3/resnet50_300ep" if folder == "moco_v3" else "transfer/moco_resnet50_linear"), [
            f"model.encoder.depth={depth[1]}"
        ]
    if short not in ARCHITECTURES:
        choices = [*ARCHITECTURES, "resnet50"]
        raise UserError(f"--arch {arch} is not known here.{closest(short, choices)} There are: {', '.join(choices)}")
    if folder == "moco_v3":
        return f"moco_v3/{short}_300ep", []
    stem = ["model.encoder.stem=conv"] if "conv" in short else []
    plain = short.replace("conv_", "")
    return f"transfer/moco_{plain}_linear", [*stem, f"model.encoder.depth={ARCHITECTURES[short]}"]


def _main_moco(o: Namespace, processes: int) -> tuple[str, Overrides, dict[str, Any]]:
    base, changes = _encoder(o.arch, "moco_v3")
    vit, conv = "resnet" not in o.arch, "conv" in o.arch
    crops = [f"train.views.{view}.0.min_area={o.crop_min}" for view in (0, 1)]
    frozen = [f"model.encoder.frozen_patch={_toml(o.stop_grad_conv1)}"] if vit and not conv else []
    if conv and o.stop_grad_conv1:
        raise UserError("--stop-grad-conv1 is for the plain patch stem; leave it out with a convolutional stem")
    return base, [
        *changes, *crops, *frozen, f"batch={o.batch_size}", f"schedule.epochs={o.epochs}",
        f"schedule.warmup_epochs={o.warmup_epochs}", f"optimizer.kind={o.optimizer}", f"optimizer.lr={o.lr}",
        "optimizer.lr_batch=256", f"optimizer.weight_decay={o.weight_decay}", f"optimizer.momentum={o.momentum}",
        f"model.objective.temperature={o.moco_t}", f"model.objective.momentum={o.moco_m}",
        f"model.objective.momentum_cosine={_toml(o.moco_m_cos)}", f"model.objective.hidden={o.moco_mlp_dim}",
        f"model.objective.dim={o.moco_dim}",
    ], {
        "--data": o.data, "--workers": _shared(o.workers, processes), "--resume": o.resume, "--device": _gpu(o),
    }  # fmt: skip


def _main_lincls(o: Namespace, processes: int) -> tuple[str, Overrides, dict[str, Any]]:
    base, changes = _encoder(o.arch, "transfer")
    if o.evaluate:
        raise UserError("--evaluate: measure with `triport evaluate RECIPE --weights FILE --data PATH`")
    return base, [
        *changes, f"batch={o.batch_size}", f"schedule.epochs={o.epochs}", f"optimizer.lr={o.lr}",
        "optimizer.lr_batch=256", f"optimizer.weight_decay={o.weight_decay}", f"optimizer.momentum={o.momentum}",
    ], {
        "--data": o.data, "--workers": _shared(o.workers, processes), "--weights": o.pretrained, "--resume": o.resume,
        "--device": _gpu(o),
    }  # fmt: skip


def _gpu(o: Namespace) -> str | None:
    return None if o.gpu is None else f"cuda:{o.gpu}"


def _shared(workers: int | None, processes: int) -> int | None:
    """main_moco.py shares its workers out over the processes of a machine; its default is left to the run."""
    return None if workers is None else -(-workers // processes)


# ---------------------------------------------------------------- MAE
def _mae_size(model: str) -> str:
    found = re.fullmatch(r"(?:mae_?)?vit_(base_patch16|large_patch16|huge_patch14)(?:_dec512d8b)?", model)
    if not found:
        names = [f"vit_{size}" for size in ("base_patch16", "large_patch16", "huge_patch14")]
        raise UserError(f"--model {model} is not known here.{closest(model, names)} There are: {', '.join(names)}")
    return found[1].partition("_")[0]


def _mae_run(o: Namespace, processes: int) -> tuple[Overrides, dict[str, Any]]:
    """What MAE's three programs share: the batch of all processes and steps, and the rate it scales."""
    batch = o.batch_size * o.accum_iter * processes
    rate = [f"optimizer.lr={o.blr}", "optimizer.lr_batch=256"]
    if o.lr is not None:
        rate = [f"optimizer.lr={o.lr}", f"optimizer.lr_batch={batch}"]
    changes = [
        *rate, f"batch={batch}", f"schedule.epochs={o.epochs}", f"schedule.warmup_epochs={o.warmup_epochs}",
        f"schedule.min_lr={o.min_lr}", f"optimizer.weight_decay={o.weight_decay}",
    ]  # fmt: skip
    options = {
        "--data": o.data_path, "--out": o.output_dir, "--device": o.device, "--resume": o.resume,
        "--workers": o.num_workers, "--accumulate": o.accum_iter if o.accum_iter > 1 else None,
    }  # fmt: skip
    if o.resume:
        options["--out"] = None
    return changes, options


def _main_pretrain(o: Namespace, processes: int) -> tuple[str, Overrides, dict[str, Any]]:
    changes, options = _mae_run(o, processes)
    return f"mae/vit_{_mae_size(o.model)}_800ep", [
        f"image={o.input_size}", *changes, f"model.objective.mask_ratio={o.mask_ratio}",
        f"model.objective.normalised_pixels={_toml(o.norm_pix_loss)}",
    ], options  # fmt: skip


def _main_linprobe(o: Namespace, processes: int) -> tuple[str, Overrides, dict[str, Any]]:
    changes, options = _mae_run(o, processes)
    options["--weights"] = o.finetune
    pooling = "mean" if o.global_pool else "token"
    return f"transfer/mae_vit_{_mae_size(o.model)}_linear", [
        *changes, f"model.objective.pooling={pooling}", f"model.objective.classes={o.nb_classes}",
    ], _begin(o, options)  # fmt: skip


def _main_finetune(o: Namespace, processes: int) -> tuple[str, Overrides, dict[str, Any]]:
    changes, options = _mae_run(o, processes)
    options["--weights"] = o.finetune
    pooling = "mean" if o.global_pool else "token"
    return f"transfer/mae_vit_{_mae_size(o.model)}_finetune", [
        f"image={o.input_size}", *changes, *_timm(o), f"model.objective.pooling={pooling}",
        f"model.objective.classes={o.nb_classes}", f"model.encoder.drop_path={o.drop_path}",
        f"optimizer.layer_decay={o.layer_decay}",
    ], _begin(o, options)  # fmt: skip


def _begin(o: Namespace, options: dict[str, Any]) -> dict[str, Any]:
    if o.eval:
        raise UserError("--eval: measure with `triport evaluate RECIPE --weights FILE --data PATH`")
    return options if options["--weights"] or o.resume else {**options, "--from-scratch": True}


def _only(*flags: tuple[str, Any, Any]) -> None:
    """Refuse flags that can have one value only here: (flag, value, allowed)."""
    for flag, value, allowed in flags:
        if value != allowed:
            raise UserError(f"--{flag} {value}: here it can only be {allowed}")


def _timm(o: Namespace) -> Overrides:
    """Augmentation and mixing as timm's flags say them; view 0 is crop, flip, RandAugment, erasing."""
    found = re.fullmatch(r"rand-m(\d+(?:\.\d+)?)(?:-n(\d+))?-mstd(\d+(?:\.\d+)?)-inc1", o.aa or "")
    if not found:
        raise UserError(f"--aa {o.aa}: here it is of the form rand-m9-mstd0.5-inc1")
    _only(
        ("remode", o.remode, "pixel"), ("recount", o.recount, 1), ("resplit", o.resplit, False),
        ("mixup-mode", o.mixup_mode, "batch"), ("cutmix-minmax", o.cutmix_minmax, None),
    )  # fmt: skip
    step = "train.views.0"
    return [
        f"{step}.2.magnitude={float(found[1])}", f"{step}.2.operations={found[2] or 2}",
        f"{step}.2.deviation={float(found[3])}", f"{step}.3.p={o.reprob}", f"mix.mixup={o.mixup}",
        f"mix.cutmix={o.cutmix}", f"mix.probability={o.mixup_prob}", f"mix.switch={o.mixup_switch_prob}",
        f"mix.smoothing={o.smoothing}", f"optimizer.clip_norm={'none' if o.clip_grad is None else o.clip_grad}",
    ]  # fmt: skip


# ---------------------------------------------------------------- DeiT
def _main(o: Namespace, processes: int) -> tuple[str, Overrides, dict[str, Any]]:
    found = re.fullmatch(r"deit_(tiny|small|base)_patch16_(224|384)", o.model)
    if not found:
        raise UserError(f"--model {o.model} is not known here: deit_{{tiny,small,base}}_patch16_{{224,384}} are")
    _only(
        ("opt", o.opt, "adamw"), ("sched", o.sched, "cosine"), ("drop", o.drop, 0.0), ("data-set", o.data_set, "IMNET"),
        ("bce-loss", o.bce_loss, False), ("distillation-type", o.distillation_type, "none"), ("cosub", o.cosub, False),
        ("ThreeAugment", o.ThreeAugment, False), ("src", o.src, False), ("attn-only", o.attn_only, False),
        ("train-mode", o.train_mode, True), ("train-interpolation", o.train_interpolation, "bicubic"),
        ("lr-noise", o.lr_noise, None),
    )  # fmt: skip
    (width, heads), batch = DEIT[found[1]], o.batch_size * processes
    first, second = o.opt_betas or (0.9, 0.999)
    resize = int(o.input_size / o.eval_crop_ratio)
    options = {"--data": o.data_path, "--out": o.output_dir, "--device": o.device, "--workers": o.num_workers,
               "--weights": o.finetune or o.resume}  # fmt: skip
    return "transfer/moco_vit_base_finetune", [
        f"image={o.input_size}", f"evaluate.views.0.0.size={resize}", f"model.encoder.width={width}",
        f"model.encoder.heads={heads}", f"model.encoder.drop_path={o.drop_path}", f"batch={batch}", *_timm(o),
        f"optimizer.lr={o.lr}", f"optimizer.lr_batch={batch if o.unscale_lr else 512}", f"optimizer.eps={o.opt_eps}",
        f"optimizer.betas=[{first}, {second}]", f"optimizer.weight_decay={o.weight_decay}",
        f"schedule.epochs={o.epochs}", f"schedule.warmup_epochs={o.warmup_epochs}", f"schedule.warmup_lr={o.warmup_lr}",
        f"schedule.min_lr={o.min_lr}", f"data.repeats={3 if o.repeated_aug else 1}",
    ], _begin(o, options)  # fmt: skip


def _toml(value: bool) -> str:
    return str(value).lower()


BUILD: dict[str, Callable[[Namespace, int], tuple[str, Overrides, dict[str, Any]]]] = {
    "main_moco": _main_moco,
    "main_lincls": _main_lincls,
    "main_pretrain": _main_pretrain,
    "main_linprobe": _main_linprobe,
    "main_finetune": _main_finetune,
    "main": _main,
}
