"""mmpretrain's configuration files of MoCo v3 and MAE as recipes, both in the older style (`_base_`) and the newer.

The files are read, not executed; `_base_` chains and `read_base()` are followed within the checkout.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from triport.core.errors import UserError
from triport.core.spec.foreign import mmengine_file
from triport.core.spec.foreign.expressions import merge
from triport.core.spec.foreign.mmpretrain_models import model
from triport.core.spec.foreign.mmpretrain_training import optimizer, schedule
from triport.core.spec.foreign.mmpretrain_views import augmentation
from triport.core.spec.foreign.python_file import Files, Module
from triport.core.spec.foreign.reading import Reading, made
from triport.core.spec.foreign.settings import Settings, flat
from triport.core.spec.foreign.values import Symbol, Tree, plain
from triport.core.spec.spec import (
    AugmentSpec,
    Classifier,
    DataSpec,
    MixSpec,
    ModelSpec,
    MonitorSpec,
    Pair,
    RandomResizedCrop,
    Recipe,
    ResNet,
)

SECTIONS = (
    "model", "data_preprocessor", "train_dataloader", "val_dataloader", "optim_wrapper", "param_scheduler", "train_cfg",
    "default_hooks", "custom_hooks", "randomness", "auto_scale_lr", "resume", "load_from", "find_unused_parameters",
    "strategy", "runner_type",
)  # fmt: skip
ELSEWHERE = {  # what becomes of settings that have no counterpart
    "default_hooks": "every step is shown and recorded, TensorBoard events are always written",
    "custom_hooks": "only EMAHook has a counterpart",
    "resume": "--resume DIR goes on with a run",
    "load_from": "--weights FILE begins with an encoder",
    "find_unused_parameters": "of PyTorch's gradient exchange",
    "strategy": "optimiser and weights are not sharded; the numbers are those of the plain optimiser",
    "runner_type": "optimiser and weights are not sharded",
    "train_cfg": "the recipe says how long",
    "randomness": "the seed alone decides, on any number of processes",
    "auto_scale_lr": "the rate is scaled by the batch: optimizer.lr is at optimizer.lr_batch",
    "train_dataloader.dataset.data_root": "--data goes before it",
    "val_dataloader.dataset.data_root": "--data goes before it",
    "train_dataloader": "batches always come through shared memory; the last ones that fill none are left out",
    "val_dataloader": "every image is scored once, in batches as large as training's",
    "data_preprocessor": "images are always RGB",
    "model.neck": "as in the paper",
    "model.init_cfg": "initial values are the paper's",
    "model.backbone.init_cfg": "--weights FILE begins with an encoder",
    "": "not known here, without effect",
}


def crop_size(s: Settings, train: AugmentSpec) -> Pair:
    """The size that training's crop has."""
    for step in train.views[0]:
        if isinstance(step, RandomResizedCrop):
            return step.size
    raise UserError(f"{s.path}: the pipeline of train_dataloader has no RandomResizedCrop")


# ---------------------------------------------------------------- the file
def read_tree(path: Path, executed: bool = False) -> dict[str, Any]:
    """Return the sections of a configuration, with those of the files it is based on, as plain values.

    executed: by mmengine, which runs the file's code.
    """
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"{path}: mmpretrain's configurations are Python files; there is none.")
    whole = mmengine_file.read_tree(path) if executed else load(Files([], {}), path.resolve(), ())
    return {name: plain(whole[name]) for name in SECTIONS if name in whole}


def load(files: Files, path: Path, above: tuple[Path, ...]) -> Tree:
    """Return the names that a file sets, put into those of its `_base_` files."""
    if path in above:
        raise UserError(f"{path} is based on itself")
    body = files.tree(path).body
    whole, own = Tree(), list[ast.stmt]()
    for node in body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_base_":
            for name in bases(path, node):
                if not (path.parent / name).is_file():
                    raise UserError(f"{path}: its base {name} is not there: read it where it lies in mmpretrain")
                merge(whole, load(files, (path.parent / name).resolve(), (*above, path)))
        else:
            own.append(node)
    scope: dict[str, Any] = {"_base_": copy.deepcopy(whole)}
    Module(files, path, scope).run(own)
    del scope["_base_"]
    settings = {name: item for name, item in scope.items() if not isinstance(item, Symbol) and name[0] != "_"}
    merge(whole, copy.deepcopy(settings))
    return whole


def bases(path: Path, node: ast.Assign) -> list[str]:
    """The files that `_base_` names."""
    try:
        value = ast.literal_eval(node.value)
    except ValueError:
        raise UserError(f"{path}, line {node.lineno}: _base_ has to be a list of files") from None
    return [value] if isinstance(value, str) else list(value)


def read(
    path: Path,
    overrides: Mapping[str, Any] | None = None,
    processes: int = 1,
    own: Sequence[str] = (),
    executed: bool = False,
    given: Sequence[str] = (),
) -> Reading:
    """Read a configuration for so many processes.

    overrides: settings by dotted key (--cfg-options); own: overrides of the recipe, where it needs them;
    executed: by mmengine; given: words of the run.
    """
    tree = read_tree(path, executed)
    if not isinstance(tree.get("model"), dict) or "train_dataloader" not in tree:
        raise UserError(f"{path} is not a configuration of mmpretrain: it has no model and train_dataloader")
    wrapper = tree.setdefault("optim_wrapper", {})
    if not isinstance(wrapper, dict):
        raise UserError(f"{path}: optim_wrapper is {wrapper!r}; it has to be a dict")
    wrapper["custom_keys"] = custom_keys(wrapper)
    s = Settings(path, flat(tree), own=list(own))
    for key, value in (overrides or {}).items():
        s.override(key, value, f"--cfg-options {key}={value}")
    return reading(s, processes, given)


def reading(s: Settings, processes: int = 1, given: Sequence[str] = ()) -> Reading:
    """Read the settings of a file for so many processes."""
    path = s.path
    task, encoder, objective, mix, weights = model(s)
    batch, lr_batch = batches(s, processes)
    train, evaluate = augmentation(s, encoder, objective)
    if isinstance(encoder, ResNet):  # which takes what the crops are
        encoder = replace(encoder, image=crop_size(s, train))
    rule = optimizer(s, lr_batch)
    recipe = Recipe(
        name=re.sub(r"[^\w.-]", "_", path.stem),
        title=f"{path.name} of mmpretrain",
        source=f"open-mmlab/mmpretrain {path.name}",
        task=task,  # type: ignore[arg-type]
        model=ModelSpec(encoder=encoder, objective=objective),
        train=train,
        evaluate=evaluate,
        optimizer=rule,
        schedule=schedule(s, rule),
        data=DataSpec(name="imagenet"),
        batch=batch,
        mix=mix if isinstance(objective, Classifier) else MixSpec(),
        monitor=MonitorSpec(
            save_every=s.whole("default_hooks.checkpoint.interval", 1),
            keep=s.whole("default_hooks.checkpoint.max_keep_ckpts", 3),
        ),
        seed=s.whole("randomness.seed", 0),
    )
    options = {
        "--data": s.one_folder([f"{split}_dataloader.dataset.data_root" for split in ("train", "val")], given),
        "--workers": s.take("train_dataloader.num_workers", None),
        "--log-steps": s.take("default_hooks.logger.interval", None),
        "--weights": weights,
    }
    for key in ("resume", "find_unused_parameters"):
        if not s.left.get(key):
            s.take(key, None)
    s.forget_all(ELSEWHERE)
    return made(s, "mmpretrain", recipe, options={k: v for k, v in options.items() if v not in (None, "")})


def custom_keys(wrapper: Mapping[str, Any]) -> dict[str, Any]:
    """Take the parameters' own rules out of the optimiser's wrapper, as names without dots."""
    own = wrapper.get("paramwise_cfg")
    keys = own.pop("custom_keys", None) if isinstance(own, dict) else None
    return {name.strip(".").replace(".", "/"): rule for name, rule in keys.items()} if isinstance(keys, dict) else {}


def batches(s: Settings, processes: int) -> tuple[int, int]:
    """The whole batch, and the one that the rate belongs to; `8xb512` in the file's name means 8 devices of 512."""
    own = s.whole("train_dataloader.batch_size")
    scaled = s.flag("auto_scale_lr.enable", False)
    base = s.whole("auto_scale_lr.base_batch_size", 0)
    named = re.search(r"(?<!\d)(\d+)xb(\d+)", s.path.stem)
    if named:
        batch = int(named[1]) * own
        if int(named[2]) != own:
            s.remarks.append(f"the file's name says {named[2]} images a device, the file {own}: the file counts")
    else:
        batch = base or own * processes
        s.remarks.append(f"the file's name does not say how many devices: the batch is {batch}")
    if base and base != batch and not scaled:
        s.remarks.append(
            f"auto_scale_lr.base_batch_size = {base}: not enabled, so the rate is that of the batch {batch}"
        )
    return batch, base if base and scaled else batch
