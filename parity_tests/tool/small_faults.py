"""Faults of small size, with the stage and array where `triport parity compare` has to find each in float64.

Faults of the backends are planted as those of `faults.py` are; faults of the data in the trial that one side is given.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from triport.core.backend import base_learner
from triport.core.data.batches import Batch
from triport.core.spec import AugmentSpec, RandAugment, RandomResizedCrop
from triport.core.spec import recipe as recipes
from triport.parity_tests.tool import faults, ranks, trace, trial
from triport.parity_tests.tool.ask import near
from triport.parity_tests.tool.comparison import compare
from triport.parity_tests.tool.faults import Plant, altered, layer_of, loaded, part, replaced
from triport.parity_tests.tool.trial import Trial

MOCO, MAE, CONV, PROBE = "tiny/test_moco_vit", "tiny/test_mae_vit", "tiny/test_moco_vit_conv", "tiny/test_mae_linear"
TUNED = "tiny/test_mae_finetune"


@dataclass(frozen=True)
class SmallFault:
    """A fault and where it stands."""

    about: str
    recipe: str
    where: tuple[int, str, str]  # step, stage, a pattern of the array's name
    plant: Plant = lambda backend: nullcontext()
    given: Callable[[Trial], Trial] = lambda what: what
    between: str | None = None  # a fault of two processes (ranks.PLANTS); "" where the second one's data has it
    second: Callable[[Batch], Batch] | None = None  # what becomes of the second process's batches


# ---------------------------------------------------------------- how they are planted
def attribute(layer: str, name: str, change: Callable[[Any], Any]) -> Plant:
    """A number of a module is another."""

    def plant(backend: str) -> AbstractContextManager[None]:
        def alter(model: Any) -> None:
            module = layer_of(model, layer)
            setattr(module, name, change(getattr(module, name)))

        return altered(backend, alter)

    return plant


def output(layer: str, change: Callable[[Any], Any]) -> Plant:
    """A module gives something else."""

    def plant(backend: str) -> AbstractContextManager[None]:
        def alter(model: Any) -> None:
            module = layer_of(model, layer)
            forward = module.forward
            module.forward = lambda *given: change(forward(*given))

        return altered(backend, alter)

    return plant


def eps(layer: str) -> Plant:
    """A layer norm has eps 2e-6 in place of 1e-6."""
    return lambda backend: faults.eps(backend, layer, 2e-6)


def array(name: str, change: Callable[[Any], Any]) -> Plant:
    """A value is another when the model is built."""
    return lambda backend: loaded(backend, name, change)


def group(name: str, **change: Callable[[float], float]) -> Plant:
    """One parameter has another rule."""

    @contextmanager
    def plant(backend: str) -> Any:
        whole = base_learner.groups

        def groups(*given: Any) -> Any:
            rules = whole(*given)
            own = {field: f(getattr(rules[name], field)) for field, f in change.items()}
            return {**rules, name: rules[name]._replace(**own)}

        with replaced(base_learner, "groups", groups):
            yield

    return plant


def rule(**change: Any) -> Plant:
    """AdamW has other settings."""

    def plant(backend: str) -> AbstractContextManager[Any]:
        kind = part(backend, "optim").AdamW
        whole = kind.update

        def update(optimizer: Any, *given: Any) -> None:
            with replaced(optimizer, "spec", replace(optimizer.spec, **change)):
                whole(optimizer, *given)

        return replaced(kind, "update", update)

    return plant


def correction(by: int) -> Plant:
    """Bias correction counts other steps."""

    def plant(backend: str) -> AbstractContextManager[Any]:
        kind = part(backend, "optim").AdamW
        whole = kind.update

        def update(optimizer: Any, *given: Any) -> None:
            with replaced(optimizer, "steps", optimizer.steps + by):
                whole(optimizer, *given)

        return replaced(kind, "update", update)

    return plant


def rate(factor: float) -> Plant:
    """The learning rate is another."""

    def plant(backend: str) -> AbstractContextManager[Any]:
        kind = part(backend, "optim").AdamW
        whole = kind.step
        return replaced(kind, "step", lambda optimizer, lr: whole(optimizer, lr * factor))

    return plant


def method(file: str, owner: str, name: str, change: Callable[[Any], Any]) -> Plant:
    """A method of a class is another, made of the right one."""

    def plant(backend: str) -> AbstractContextManager[Any]:
        kind = getattr(part(backend, file), owner)
        return replaced(kind, name, change(getattr(kind, name)))

    return plant


def without_factor(whole: Any) -> Any:
    """Stochastic depth that does not divide by the share it keeps."""
    return lambda block, branch, draw: whole(block, branch, draw) * (1 if draw is None else block.keep)


def first_batch(**change: Callable[[Any], Any]) -> Callable[[Trial], Trial]:
    """A trial whose first batch is another."""

    def given(what: Trial) -> Trial:
        first = what.batches[0][0]
        other = replace(first, **{name: f(getattr(first, name)) for name, f in change.items()})
        return replace(what, batches=[[other], *what.batches[1:]])

    return given


def other_recipe(*overrides: str) -> Callable[[Trial], Trial]:
    """A trial whose batches another recipe has drawn."""

    def given(what: Trial) -> Trial:
        loaded_ = recipes.load(what.recipe.name, overrides)
        made = trial.assemble(loaded_, steps=what.steps, batch=what.batch, precision=what.precision)
        return replace(what, batches=made.batches)

    return given


def other_augmentation(change: Callable[[AugmentSpec], AugmentSpec]) -> Callable[[Trial], Trial]:
    """A trial whose images are augmented otherwise."""

    def given(what: Trial) -> Trial:
        other = replace(what.recipe, train=change(what.recipe.train))
        made = trial.assemble(other, steps=what.steps, batch=what.batch, precision=what.precision)
        return replace(what, batches=made.batches)

    return given


def stronger(train: AugmentSpec) -> AugmentSpec:
    """RandAugment one level up."""
    views = [
        tuple(replace(op, magnitude=op.magnitude + 1) if isinstance(op, RandAugment) else op for op in view)
        for view in train.views
    ]
    return replace(train, views=tuple(views))


def bicubic(train: AugmentSpec) -> AugmentSpec:
    """The second view cropped by another filter."""
    second = [
        replace(op, interpolation="bicubic") if isinstance(op, RandomResizedCrop) else op for op in train.views[1]
    ]
    return replace(train, views=(train.views[0], tuple(second)))


def row_moved(table: Any) -> Any:
    """A position table whose row 3 stands at 4 as well."""
    other = np.array(table)
    other[:, 4] = other[:, 3]
    return other


BLOCK = "base_encoder.blocks.1"
FAULTS = (
    # ---- layers
    SmallFault("eps 2e-6 in the first norm of a block", MOCO, (0, "forward", f"{BLOCK}.norm1"), eps(f"{BLOCK}.norm1")),
    SmallFault("eps 2e-6 in the second", MAE, (0, "forward", "blocks.1.norm2"), eps("blocks.1.norm2")),
    SmallFault(
        "eps 2e-6 in the encoder's last norm", MOCO, (0, "forward", "base_encoder.norm"), eps("base_encoder.norm")
    ),
    SmallFault("eps 2e-6 in the decoder's", MAE, (0, "forward", "decoder_norm"), eps("decoder_norm")),
    SmallFault(
        "eps 2e-6 in the momentum encoder",
        MOCO,
        (0, "forward", "momentum_encoder.blocks.0.norm1"),
        eps("momentum_encoder.blocks.0.norm1"),
    ),
    SmallFault(
        "eps 1.1e-5 in a batch norm",
        MOCO,
        (0, "forward", r"base_encoder.head.1"),
        attribute("base_encoder.head.1", "eps", lambda value: value * 1.1),
    ),
    SmallFault(
        "momentum 0.1001 in a batch norm",
        CONV,
        (0, "batch-norm statistics", r"base_encoder.patch_embed.proj.4.running_mean"),
        attribute("base_encoder.patch_embed.proj.4", "momentum", lambda value: value * 1.001),
    ),
    SmallFault(
        "a linear layer's output larger by 1e-6",
        MAE,
        (0, "forward", "blocks.0.mlp.fc1"),
        output("blocks.0.mlp.fc1", lambda y: y * (1 + 1e-6)),
    ),
    SmallFault(
        "queries, keys and values larger by 1e-6",
        MAE,
        (0, "forward", "blocks.1.attn.qkv"),
        output("blocks.1.attn.qkv", lambda y: y * (1 + 1e-6)),
    ),
    SmallFault(
        "one wrong row in a position table", MAE, (0, "initial values", "pos_embed"), array("pos_embed", row_moved)
    ),
    SmallFault(
        "class token larger by 1e-6",
        MAE,
        (0, "initial values", "cls_token"),
        array("cls_token", lambda t: t * (1 + 1e-6)),
    ),
    SmallFault(
        "stochastic depth without its factor",
        TUNED,
        (0, "forward", r"blocks\..*"),
        method("layers", "Block", "_drop", without_factor),
    ),
    SmallFault(
        "a gradient larger by 1e-6",
        MAE,
        (0, "backward", "blocks.1.norm2/input"),
        lambda backend: faults.wrong_gradient(backend, "blocks.1.norm2", 1 + 1e-6),
    ),
    # ---- losses, momentum encoder
    SmallFault(
        "temperature larger by 1e-4", MOCO, (0, "loss", "loss"), attribute("", "temperature", lambda t: t * 1.0001)
    ),
    SmallFault(
        "contrastive loss larger by 1e-6",
        MOCO,
        (0, "loss", "loss"),
        method("moco", "MoCoV3", "contrast", lambda whole: lambda *given: whole(*given) * (1 + 1e-6)),
    ),
    SmallFault(
        "momentum 1e-4 too high",
        MOCO,
        (1, "momentum update", r"momentum_encoder\..*"),
        method("moco", "MoCoV3", "update_momentum", lambda whole: lambda model, m: whole(model, m + 1e-4)),
    ),
    # ---- optimiser
    SmallFault(
        "weight decay on the scale of one norm",
        MAE,
        (0, "optimiser update", "blocks.0.norm1.weight"),
        group("blocks.0.norm1.weight", weight_decay=lambda decay: 0.05),
    ),
    SmallFault(
        "weight decay on one bias",
        MAE,
        (0, "optimiser update", "patch_embed.proj.bias"),
        group("patch_embed.proj.bias", weight_decay=lambda decay: 0.05),
    ),
    SmallFault(
        "no weight decay on one matrix",
        MAE,
        (0, "optimiser update", "blocks.0.mlp.fc1.weight"),
        group("blocks.0.mlp.fc1.weight", weight_decay=lambda decay: 0.0),
    ),
    SmallFault(
        "weight decay larger by 1e-3 on one matrix",
        MAE,
        (0, "optimiser update", "blocks.0.mlp.fc1.weight"),
        group("blocks.0.mlp.fc1.weight", weight_decay=lambda decay: decay * 1.001),
    ),
    SmallFault(
        "learning rate of one tensor larger by 1e-4",
        MAE,
        (0, "optimiser update", "blocks.1.norm1.weight"),
        group("blocks.1.norm1.weight", lr_scale=lambda scale: scale * 1.0001),
    ),
    SmallFault("learning rate larger by 1e-6", MAE, (0, "optimiser update", ".*"), rate(1 + 1e-6)),
    SmallFault("beta 0.9501 for 0.95", MAE, (0, "optimiser state", "exp_avg_sq/.*"), rule(betas=(0.9, 0.9501))),
    SmallFault("beta 0.9001 for 0.9", MAE, (0, "optimiser state", "exp_avg/.*"), rule(betas=(0.9001, 0.95))),
    SmallFault("eps 2e-8 in AdamW", MAE, (0, "optimiser update", ".*"), rule(eps=2e-8)),
    SmallFault("bias correction one step ahead", MAE, (0, "optimiser update", ".*"), correction(1)),
    # ---- data
    SmallFault(
        "pixels brighter by 1e-6",
        MAE,
        (0, "inputs", "images"),
        given=first_batch(images=lambda views: tuple(v * np.float32(1 + 1e-6) for v in views)),
    ),
    SmallFault(
        "two samples change places",
        PROBE,
        (0, "inputs", "images"),
        given=first_batch(images=lambda views: tuple(v[[1, 0, *range(2, len(v))]] for v in views)),
    ),
    SmallFault(
        "labels shifted by one",
        PROBE,
        (0, "inputs", "labels"),
        given=first_batch(labels=lambda labels: np.roll(labels, 1)),
    ),
    SmallFault(
        "masking noise of another sample",
        MAE,
        (0, "inputs", "mask_noise"),
        given=first_batch(mask_noise=lambda noise: np.roll(noise, 1, axis=0)),
    ),
    SmallFault("RandAugment one level stronger", TUNED, (0, "inputs", "images"), given=other_augmentation(stronger)),
    SmallFault(
        "bicubic in place of bilinear in the second view",
        MOCO,
        (0, "inputs", "view2"),
        given=other_augmentation(bicubic),
    ),
    # ---- two processes
    SmallFault(
        "labels shifted by one in the second process",
        PROBE,
        (0, "inputs", "labels"),
        between="",
        second=ranks.labels_shifted,
    ),
    SmallFault("an all-reduce that averages in place of sums", MAE, (0, "gradients", ".*"), between="averaged again"),
    SmallFault(
        "another seed of the batches", MOCO, (0, "inputs", "images|indices|view1"), given=other_recipe("seed=1")
    ),
)


# ---------------------------------------------------------------- how they are found
@cache
def subject(name: str) -> Trial:
    """A trial in float64."""
    steps = 2 if name == MOCO else 1  # the momentum encoder begins as the base encoder and moves apart later
    return trial.assemble(recipes.load(name), steps=steps, batch=8, precision="float64")


@cache
def sound(backend: str, name: str) -> trace.Trace:
    """A trace of the backend as it is."""
    return trace.record(subject(name), backend, ask=near)


@cache
def of_two(backend: str) -> dict[tuple[str, str, Any], trace.Trace]:
    """Traces of two processes under each of the faults between them, and without one: of one job."""
    known = [(fault.recipe, fault.between, fault.second) for fault in FAULTS if fault.between is not None]
    known += [(recipe, "", None) for recipe in (MAE, PROBE)]
    asked = list(dict.fromkeys(known))
    traces = ranks.record(backend, [(subject(recipe), between, second) for recipe, between, second in asked])
    return dict(zip(asked, traces))


def found(backend: str, fault: SmallFault) -> tuple[int, str, str] | None:
    """Step, stage and array that `compare` names for a fault in a backend of this interpreter; None: no departure."""
    if fault.between is not None:
        faulty = of_two(backend)[fault.recipe, fault.between, fault.second]
    else:
        with fault.plant(backend):
            faulty = trace.record(fault.given(subject(fault.recipe)), backend, ask=near)
    result = compare(sound(backend, fault.recipe), faulty)
    if result.first is None:
        return None
    line = result.lines[result.first]
    return line.step, line.stage, line.name


def named(fault: SmallFault, where: tuple[int, str, str] | None) -> bool:
    """Whether that is where the fault stands."""
    return where is not None and where[:2] == fault.where[:2] and bool(re.fullmatch(fault.where[2], where[2]))
