"""The flags of the originals' programs with their defaults, and what becomes of those without a counterpart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from triport.core.options import Task

Flag = tuple[tuple[str, ...], dict[str, Any]]


@dataclass(frozen=True)
class Program:
    """A program of another project: its flags as argparse takes them."""

    name: str
    project: str
    task: Task
    flags: tuple[Flag, ...]
    positional: bool = False  # the last word is the folder of the images


def number(*names: str, default: Any = None, **more: Any) -> Flag:
    """A flag with a number."""
    return names, {"type": float, "default": default, **more}


def whole(*names: str, default: Any = None, **more: Any) -> Flag:
    """A flag with a whole number."""
    return names, {"type": int, "default": default, **more}


def text(*names: str, default: Any = "", **more: Any) -> Flag:
    """A flag with a text."""
    return names, {"default": default, **more}


def on(*names: str, **more: Any) -> Flag:
    """A flag that stands alone and switches something on."""
    return names, {"action": "store_true", **more}


def off(*names: str, dest: str, default: bool = True) -> tuple[Flag, ...]:
    """A pair of flags: `names[0]` switches something on, `names[1]` off."""
    return (
        ((names[0],), {"action": "store_true", "dest": dest, "default": default}),
        ((names[1],), {"action": "store_false", "dest": dest, "default": default}),
    )


LAUNCHER = "the launcher says how many processes there are: --processes N (on several machines --nodes, --master)"
NAMED = {  # flags without a counterpart, and what becomes of them
    "world_size": LAUNCHER,
    "rank": LAUNCHER,
    "dist_url": LAUNCHER,
    "dist_backend": LAUNCHER,
    "multiprocessing_distributed": LAUNCHER,
    "local_rank": LAUNCHER,
    "dist_on_itp": LAUNCHER,
    "distributed": LAUNCHER,
    "start_epoch": "a resumed run knows where it was",
    "print_freq": "--log-steps N says how often is recorded",
    "log_dir": "TensorBoard events lie in the run's folder",
    "pin_mem": "batches always come through shared memory",
    "dist_eval": "all processes share the scoring, and every image counts once",
    "color_jitter": "RandAugment stands in its place, as in timm",
    "model_ema": "the average is never evaluated; optimizer.average=0.99996 keeps it",
    "model_ema_decay": "the average is never evaluated; optimizer.average=0.99996 keeps it",
    "model_ema_force_cpu": "the average is never evaluated",
    "momentum": "AdamW has none",
    "lr_noise_pct": "there is no noise on the rate",
    "lr_noise_std": "there is no noise on the rate",
    "decay_epochs": "of other schedules",
    "decay_rate": "of other schedules",
    "cooldown_epochs": "DeiT's main.py trains for --epochs and never reaches them",
    "patience_epochs": "of other schedules",
    "inat_category": "of other data",
    "teacher_model": "of distillation",
    "teacher_path": "of distillation",
    "distillation_alpha": "of distillation",
    "distillation_tau": "of distillation",
}

MOCO: tuple[Flag, ...] = (
    text("-a", "--arch", default="resnet50"), whole("-j", "--workers"), whole("--start-epoch", default=0),
    whole("-p", "--print-freq", default=10), text("--resume"), whole("--world-size", default=-1),
    whole("--rank", default=-1), text("--dist-url"), text("--dist-backend", default="nccl"), whole("--seed"),
    whole("--gpu"), on("--multiprocessing-distributed"), number("--momentum", default=0.9), text("--data"),
)  # fmt: skip
RUN: tuple[Flag, ...] = (
    whole("--accum_iter", default=1), number("--lr"), text("--data_path", "--data"), text("--output_dir", "--out"),
    text("--log_dir"), text("--device", default="auto"), whole("--seed", default=0), text("--resume"),
    whole("--start_epoch", default=0), whole("--num_workers", "--workers"),
    *off("--pin_mem", "--no_pin_mem", dest="pin_mem"),
    whole("--world_size", default=1), whole("--local_rank", default=-1), on("--dist_on_itp"), text("--dist_url"),
)  # fmt: skip
TUNED: tuple[Flag, ...] = (
    text("--finetune"), *off("--global_pool", "--cls_token", dest="global_pool"), whole("--nb_classes", default=1000),
    on("--eval"), on("--dist_eval"),
)  # fmt: skip
TIMM: tuple[Flag, ...] = (
    number("--color_jitter", "--color-jitter"), text("--aa", default="rand-m9-mstd0.5-inc1"),
    number("--smoothing", default=0.1), number("--reprob", default=0.25), text("--remode", default="pixel"),
    whole("--recount", default=1), on("--resplit"), number("--cutmix_minmax", "--cutmix-minmax", nargs="+"),
    number("--mixup_prob", "--mixup-prob", default=1.0), text("--mixup_mode", "--mixup-mode", default="batch"),
    number("--mixup_switch_prob", "--mixup-switch-prob", default=0.5), number("--clip_grad", "--clip-grad"),
)  # fmt: skip
DEIT: tuple[Flag, ...] = (
    text("--model", default="deit_base_patch16_224"), whole("--batch-size", default=64), whole("--epochs", default=300),
    whole("--input-size", default=224), number("--drop", default=0.0), number("--drop-path", default=0.1),
    on("--bce-loss"), on("--unscale-lr"), *off("--model-ema", "--no-model-ema", dest="model_ema"),
    number("--model-ema-decay", default=0.99996), on("--model-ema-force-cpu"), text("--opt", default="adamw"),
    number("--opt-eps", default=1e-8), number("--opt-betas", nargs=2), number("--momentum", default=0.9),
    number("--weight-decay", default=0.05), text("--sched", default="cosine"), number("--lr", default=5e-4),
    number("--lr-noise", nargs="+"), number("--lr-noise-pct", default=0.67), number("--lr-noise-std", default=1.0),
    number("--warmup-lr", default=1e-6), number("--min-lr", default=1e-5), number("--decay-epochs", default=30),
    whole("--warmup-epochs", default=5), whole("--cooldown-epochs", default=10), whole("--patience-epochs", default=10),
    number("--decay-rate", "--dr", default=0.1), text("--train-interpolation", default="bicubic"),
    *off("--repeated-aug", "--no-repeated-aug", dest="repeated_aug"),
    *off("--train-mode", "--no-train-mode", dest="train_mode"), on("--ThreeAugment"), on("--src"), on("--cosub"),
    number("--mixup", default=0.8), number("--cutmix", default=1.0), text("--teacher-model", default="regnety_160"),
    text("--teacher-path"), text("--distillation-type", default="none"), number("--distillation-alpha", default=0.5),
    number("--distillation-tau", default=1.0), text("--finetune"), on("--attn-only"), text("--data-path", "--data"),
    text("--data-set", default="IMNET"), text("--inat-category", default="name"), text("--output_dir", "--out"),
    text("--device", default="auto"), whole("--seed", default=0), text("--resume"), whole("--start_epoch", default=0),
    on("--eval"), number("--eval-crop-ratio", default=0.875), on("--dist-eval"), whole("--num_workers", "--workers"),
    *off("--pin-mem", "--no-pin-mem", dest="pin_mem"), on("--distributed"), whole("--world_size", default=1),
    text("--dist_url"),
)  # fmt: skip


def _mae(model: str, batch: int, epochs: int, blr: float, least: float, warmup: int, decay: float) -> tuple[Flag, ...]:
    return (
        text("--model", default=model), whole("--batch_size", default=batch), whole("--epochs", default=epochs),
        number("--blr", default=blr), number("--min_lr", default=least), whole("--warmup_epochs", default=warmup),
        number("--weight_decay", default=decay),
    )  # fmt: skip


PROGRAMS = {
    program.name: program
    for program in (
        Program("main_moco", "moco-v3", "pretrain", (
            *MOCO, whole("--epochs", default=100), whole("-b", "--batch-size", default=4096),
            number("--lr", "--learning-rate", default=0.6, dest="lr"),
            number("--wd", "--weight-decay", default=1e-6, dest="weight_decay"), whole("--moco-dim", default=256),
            whole("--moco-mlp-dim", default=4096), number("--moco-m", default=0.99), on("--moco-m-cos"),
            number("--moco-t", default=1.0), on("--stop-grad-conv1"),
            text("--optimizer", default="lars", choices=("lars", "adamw")), whole("--warmup-epochs", default=10),
            number("--crop-min", default=0.08),
        ), positional=True),
        Program("main_lincls", "moco-v3", "linear", (
            *MOCO, whole("--epochs", default=90), whole("-b", "--batch-size", default=1024),
            number("--lr", "--learning-rate", default=0.1, dest="lr"),
            number("--wd", "--weight-decay", default=0.0, dest="weight_decay"), on("-e", "--evaluate"),
            text("--pretrained", "--weights"),
        ), positional=True),
        Program("main_pretrain", "MAE", "pretrain", (
            *_mae("mae_vit_large_patch16", 64, 400, 1e-3, 0.0, 40, 0.05), *RUN, whole("--input_size", default=224),
            number("--mask_ratio", default=0.75), on("--norm_pix_loss"),
        )),
        Program("main_linprobe", "MAE", "linear", (
            *_mae("vit_large_patch16", 512, 90, 0.1, 0.0, 10, 0.0), *RUN, text("--finetune", "--weights"),
            *off("--global_pool", "--cls_token", dest="global_pool", default=False), *TUNED[3:],
        )),
        Program("main_finetune", "MAE", "finetune", (
            *_mae("vit_large_patch16", 64, 50, 1e-3, 1e-6, 5, 0.05), *RUN, *TUNED, *TIMM,
            whole("--input_size", default=224), number("--drop_path", default=0.1),
            number("--layer_decay", default=0.75), number("--mixup", default=0.0), number("--cutmix", default=0.0),
        )),
        Program("main", "DeiT", "finetune", (*DEIT, *TIMM)),
    )
}  # fmt: skip
