"""LiBai's optimiser, schedule, batch and paths as those of a recipe and a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from triport.core.errors import UserError
from triport.core.spec.foreign.settings import Settings
from triport.core.spec.spec import OptimizerSpec, ScheduleSpec

Cosine = Literal["after_warmup", "whole", "early"]
End = Literal["peak", "cosine"]
# scheduler -> its cosine, where its warm-up ends (OneFlow's WarmupLR: on the cosine), its setting of the smallest rate
COSINES: dict[str, tuple[Cosine, End, str]] = {
    "warmup_layerscale_cosine_lr_scheduler": ("after_warmup", "peak", "train.scheduler.min_lr"),
    "warmup_cosine_lr_scheduler": ("early", "cosine", "train.scheduler.min_lr"),
    "WarmupCosineLR": ("whole", "cosine", "train.scheduler.alpha"),
    "WarmupCosineAnnealingLR": ("whole", "cosine", "train.scheduler.eta_min"),
}
BATCH = ("train.train_micro_batch_size", "train.global_batch_size", "train.num_accumulation_steps")


def options(
    s: Settings, task: str, degrees: Mapping[str, int], processes: int, given: Sequence[str] = ()
) -> tuple[int, dict[str, Any]]:
    """Return the batch and the run's options; `given` words go before them.

    The batch is LiBai's: that of a device, times accumulation steps, times data degree; the degree that the file was
    reckoned for where it says one, else that of the run.
    """
    left = max(1, processes // (degrees["tensor"] * degrees["pipeline"]))
    data = degrees["data"] if degrees["data"] > 1 else left
    batch, _, micro = shares(s, data)
    if degrees["data"] > 1 and degrees["data"] != left:
        s.remarks.append(
            f"train.dist.data_parallel_size = {degrees['data']}: the batch stays {batch}, as the file reckons, on the "
            f"{left} data parallel processes of this run"
        )
    found: dict[str, Any] = {"--out": s.take("train.output_dir", None), "--log-steps": s.take("train.log_period", None)}
    found["--data"] = data_folder(s, given)
    found["--workers"] = s.take("dataloader.train.num_workers", None)
    if micro is not None and micro * left < batch:
        found["--micro-batch"] = micro
    found["--weights"] = weights(s, task)
    if task == "finetune" and s.take("finetune.enable", True) is False:
        found |= {"--weights": None, "--from-scratch": True}
    return batch, {key: value for key, value in found.items() if value not in (None, "")}


def shares(s: Settings, data: int) -> tuple[int, int, int | None]:
    """The batch, accumulation steps and micro-batch by LiBai's rule for a data degree."""
    micro, whole, steps = (None if s.left.get(key) is None else s.whole(key) for key in BATCH)
    for key in BATCH:
        s.take(key, None)
    if micro is None and whole is None:
        raise UserError(f"{s.path} has neither {BATCH[0]} nor {BATCH[1]}")
    if micro is None:
        return whole or 0, steps or 1, None
    if whole is None:
        whole = micro * data * (steps or 1)
    if steps is None and whole % (micro * data) == 0:
        steps = whole // (micro * data)
    if steps is None or micro * data * steps != whole:
        raise UserError(
            f"{s.path}: train.global_batch_size {whole} is not train.train_micro_batch_size {micro} x data degree "
            f"{data} x train.num_accumulation_steps {steps if steps is not None else '(a whole number)'}."
        )
    return whole, steps, micro


def data_folder(s: Settings, given: Sequence[str]) -> str | None:
    """The folder that both splits name, which holds train and val."""
    s.take("dataloader.train.dataset.0.train", True)
    s.take("dataloader.test.0.dataset.train", False)
    return s.one_folder(("dataloader.train.dataset.0.root", "dataloader.test.0.dataset.root"), given)


def weights(s: Settings, task: str) -> str | None:
    """The file that a probe or a fine-tuning begins with."""
    if task == "linear":
        s.one_of("model.weight_style", ("pytorch", "oneflow"), "pytorch")
        return str(s.take("model.linear_prob"))
    if task == "finetune":
        s.one_of("finetune.weight_style", ("pytorch", "oneflow", "triport"), "oneflow")
        return s.take("finetune.path", None)
    return None


def optimizer(s: Settings, batch: int) -> OptimizerSpec:
    """AdamW or SGD; LiBai's learning rate is that of the whole batch."""
    kind = s.one_of("optim._target_", ("AdamW", "SGD"))
    rule = str(s.take("optim.params._target_", "get_default_optimizer_params"))
    clip = s.take("optim.params.clip_grad_max_norm", None)
    norm = s.take("optim.params.clip_grad_norm_type", None)
    if clip is not None and norm not in (2, 2.0):
        raise UserError(f"{s.path}: optim.params.clip_grad_norm_type is {norm}; here it can only be 2")
    s.only("optim.do_bias_correction", True)
    whole = s.number("optim.weight_decay", 0.01 if kind == "AdamW" else 0.0)
    decay = s.number("optim.params.weight_decay", whole)
    if decay != whole and "optim.weight_decay" in s.taken:
        s.remarks.append(f"optim.weight_decay = {whole:g}: optim.params.weight_decay = {decay:g} goes before it")
    layer = s.take("optim.params.layer_decay", None)
    first, second = s.numbers("optim.betas", 2, (0.9, 0.999))
    twice = s.take("train.layer_decay", layer)
    if twice != layer:
        raise UserError(f"{s.path}: train.layer_decay {twice} is not optim.params.layer_decay {layer}")
    return OptimizerSpec(
        kind="adamw" if kind == "AdamW" else "sgd",
        lr=s.number("optim.lr"),
        lr_batch=batch,
        weight_decay=decay,
        decays=decays(s, rule, decay),  # type: ignore[arg-type]
        betas=(first, second),
        eps=s.number("optim.eps", 1e-8),
        momentum=s.number("optim.momentum", 0.9 if kind == "AdamW" else 0.0),
        layer_decay=layer,
        clip_norm=clip,
    )


def decays(s: Settings, rule: str, decay: float) -> str:
    """Which parameters decay, as one of the recipe's rules."""
    if rule == "param_groups_lrd":
        return "matrices_but_tokens"
    if rule == "param_groups_weight_decay":
        return "matrices"
    if rule != "get_default_optimizer_params":
        raise UserError(f"{s.path}: optim.params._target_ {rule} is not known here")
    found = [s.take(f"optim.params.weight_decay_{part}", decay) for part in ("norm", "bias")]
    if found == [decay, decay]:
        return "all"
    if found != [0, 0]:
        raise UserError(
            f"{s.path}: optim.params.weight_decay_norm and weight_decay_bias are {found[0]} and {found[1]}; here both "
            f"are 0, or both as the rest"
        )
    return "matrices"


def schedule(s: Settings) -> ScheduleSpec:
    """LiBai's cosines with warm-up, by steps."""
    name = str(s.take("train.scheduler._target_", "WarmupCosineLR"))
    lr = s.number("optim.lr") if "optim.lr" in s.left else _peak(s)
    epochs = s.whole("train.train_epoch", 0)
    if epochs < 1:
        raise UserError(f"{s.path}: train.train_epoch is {epochs}: say how many epochs, train.train_epoch=100")
    warmup = round(s.number("train.warmup_ratio", 0.0) * epochs, 9)
    s.only("train.scheduler.warmup_method", "linear")
    factor = s.number("train.scheduler.warmup_factor", 0.0)
    if not warmup:
        s.remarks.append(f"train.scheduler.warmup_factor = {factor:g}: there is no warm-up")
    if name not in COSINES:
        raise UserError(f"{s.path}: train.scheduler._target_ {name} is not known here")
    cosine, end, least_key = COSINES[name]
    least = s.number(least_key, 0.0) * (lr if least_key.endswith("alpha") else 1.0)
    if cosine == "early" and warmup:
        s.remarks.append(
            f"train.scheduler {name}: kept as in LiBai, where the cosine begins with the run, is at its end "
            f"{warmup:g} epochs early and rises again; schedule.cosine=after_warmup is the paper's"
        )
    return ScheduleSpec(
        epochs=epochs,
        warmup_epochs=warmup,
        warmup_lr=lr * factor if warmup else 0.0,
        min_lr=least,
        cosine=cosine if warmup else "after_warmup",
        warmup_end=end if warmup else "peak",
    )


def _peak(s: Settings) -> float:
    return float(s.taken["optim.lr"])
