"""mmpretrain's optimiser wrapper and parameter schedulers as those of a recipe."""

from __future__ import annotations

from triport.core.errors import UserError
from triport.core.spec.foreign.settings import Settings
from triport.core.spec.spec import OptimizerSpec, ScheduleSpec

KINDS = {"AdamW": "adamw", "LARS": "lars", "SGD": "sgd"}
SWIN = {"absolute_pos_embed", "relative_position_bias_table"}  # parameters that these models do not have
NORMS = {"ln", "norm", "bn", "downsample/1"}


def optimizer(s: Settings, lr_batch: int) -> OptimizerSpec:
    """AdamW, LARS or SGD; the rate belongs to the batch `lr_batch`."""
    wrapper = s.take("optim_wrapper.type", "OptimWrapper")
    if wrapper not in ("OptimWrapper", "AmpOptimWrapper"):
        s.remarks.append(f"optim_wrapper.type = {wrapper}: the plain optimiser, which has the same numbers")
    elif wrapper == "AmpOptimWrapper":
        s.remarks.append("optim_wrapper.type = AmpOptimWrapper: give --precision bfloat16; float32 without it")
    s.forget("optim_wrapper.loss_scale", "bfloat16 needs none")
    kind = s.one_of("optim_wrapper.optimizer.type", tuple(KINDS))
    first, second = s.numbers("optim_wrapper.optimizer.betas", 2, (0.9, 0.999))
    layer = _layer_decay(s)
    clip = s.take("optim_wrapper.clip_grad.max_norm", None)
    s.only("optim_wrapper.clip_grad.norm_type", 2)
    return OptimizerSpec(
        kind=KINDS[kind],  # type: ignore[arg-type]
        lr=s.number("optim_wrapper.optimizer.lr"),
        lr_batch=lr_batch,
        weight_decay=s.number("optim_wrapper.optimizer.weight_decay", 0.01 if kind == "AdamW" else 0.0),
        decays=_decays(s, kind, layer),  # type: ignore[arg-type]
        betas=(first, second),
        eps=s.number("optim_wrapper.optimizer.eps", 1e-8),
        momentum=s.number("optim_wrapper.optimizer.momentum", 0.9),
        trust=s.number("optim_wrapper.optimizer.eta", 0.001),
        layer_decay=layer,
        clip_norm=clip,
        average=_average(s),
    )


def _layer_decay(s: Settings) -> float | None:
    builder = s.take("optim_wrapper.constructor", "DefaultOptimWrapperConstructor")
    rate = s.take("optim_wrapper.paramwise_cfg.layer_decay_rate", None)
    if (rate is not None) != (builder == "LearningRateDecayOptimWrapperConstructor"):
        raise UserError(f"{s.path}: optim_wrapper.constructor {builder} does not go with layer_decay_rate {rate}")
    if rate is not None:
        s.remarks.append("param_scheduler eta_min: here it is scaled as the rate of each layer is")
    return rate


def _decays(s: Settings, kind: str, layer: float | None) -> str:
    """Which parameters decay, as one of the recipe's rules."""
    key, none = "optim_wrapper.custom_keys", set[str]()
    for name in s.inside(key):
        if s.number(f"{key}.{name}.decay_mult", 1.0) != 0:
            raise UserError(f"{s.path}: custom_keys '{name}': decay_mult can only be 0 here")
        s.take(f"{key}.{name}.lars_exclude", False)
        if s.inside(f"{key}.{name}"):
            raise UserError(f"{s.path}: custom_keys '{name}': {', '.join(s.inside(f'{key}.{name}'))} is not known here")
        none.add(name)
    s.take(key, None)
    s.take("optim_wrapper.paramwise_cfg", None)
    for part in ("norm", "bias", "flat"):
        if s.one_of(f"optim_wrapper.paramwise_cfg.{part}_decay_mult", (0, 1), 1.0) == 0:
            none |= {"norm", "bias"} if part == "flat" else {part}
    none -= SWIN
    if kind == "LARS" and not none - NORMS - {"bias"}:
        return "all"  # LARS itself leaves out tensors of one dimension
    flat = bool(none & NORMS) and "bias" in none
    tokens = none - NORMS - {"bias"}
    if not none:
        return "all"
    if flat and not tokens:
        return "matrices"
    if flat and {"cls_token", "pos_embed"} <= tokens and not tokens - {"cls_token", "pos_embed", "mask_token"}:
        return "matrices_but_tokens"
    if flat and tokens == {"pos_embed", "mask_token"}:
        raise UserError(f"{s.path}: weight decay of cls_token alone among the tokens is not known here")
    raise UserError(f"{s.path}: no weight decay of {', '.join(sorted(none))} is a rule that is not known here")


def _average(s: Settings) -> float | None:
    """The moving average of EMAHook."""
    found = None
    for number in s.inside("custom_hooks"):
        if s.left.get(f"custom_hooks.{number}.type") == "EMAHook":
            s.take(f"custom_hooks.{number}.type")
            found = 1 - s.number(f"custom_hooks.{number}.momentum", 0.0002)
            s.forget(f"custom_hooks.{number}.priority", "hooks have their order")
    return found


def schedule(s: Settings, rule: OptimizerSpec) -> ScheduleSpec:
    """A linear warm-up, if there is one, and a cosine to the end."""
    epochs = s.whole("train_cfg.max_epochs")
    warmup, start, steps = 0.0, 0.0, []
    for number in s.inside("param_scheduler"):
        key = f"param_scheduler.{number}"
        kind = s.one_of(f"{key}.type", ("LinearLR", "CosineAnnealingLR"))
        s.only(f"{key}.by_epoch", True)
        begin = s.number(f"{key}.begin", 0)
        steps.append(s.flag(f"{key}.convert_to_iter_based", False))
        if kind == "LinearLR":
            if begin:
                raise UserError(f"{s.path}: {key}.begin is {begin:g}; here the warm-up begins the run")
            start, warmup = s.number(f"{key}.start_factor", 1 / 3), s.number(f"{key}.end")
            s.only(f"{key}.end_factor", 1.0)
        else:
            end = s.number(f"{key}.end", epochs)
            length = s.number(f"{key}.T_max", end - begin)
            least = s.number(f"{key}.eta_min", 0.0)
            if (begin, end, length) != (warmup, epochs, epochs - warmup):
                raise UserError(
                    f"{s.path}: {key}: the cosine goes from {begin:g} over {length:g} to {end:g}; here it spans what "
                    f"the warm-up of {warmup:g} leaves of {epochs} epochs"
                )
    if not steps:
        raise UserError(f"{s.path}: param_scheduler has no schedule")
    if len(set(steps)) > 1:
        s.remarks.append("param_scheduler: warm-up by steps and cosine by epochs: here both change with each step")
    return ScheduleSpec(
        epochs=epochs,
        warmup_epochs=warmup,
        warmup_lr=float(f"{start * rule.lr:.12g}") if warmup else 0.0,
        min_lr=least,
        per="step" if any(steps) else "epoch",
    )
