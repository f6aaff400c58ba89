"""Checkpoints as PASSL's scripts write them: triport pretrain RECIPE --backend paddle --export pd."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from triport.backends.paddle import distributed, learner
from triport.backends.paddle.passl import modules as passl_modules
from triport.backends.paddle.runtime import paddle
from triport.backends.paddle.tensors import Tensors
from triport.core import atomic
from triport.core.errors import UserError
from triport.core.model import schedule
from triport.core.options import Parser
from triport.core.record import checkpoint
from triport.core.run import run
from triport.core.spec import MAE, Recipe, ViT, recipe
from triport.weights.commands.convert import convert

STATISTICS = {"_mean": "running_mean", "_variance": "running_var"}
SCALER = {
    "scale": np.array([65536.0], np.float32),
    "incr_ratio": 2.0,
    "decr_ratio": 0.5,
    "incr_every_n_steps": 2000,
    "decr_every_n_nan_or_inf": 1,
    "incr_count": 0,
    "decr_count": 0,
    "use_dynamic_loss_scaling": True,
}


def pretrain(argv: Sequence[str]) -> int:
    """Pretrain, and write every checkpoint that the run keeps in PASSL's form too; return the exit code."""
    p = Parser(prog="triport pretrain", add_help=False, allow_abbrev=False)
    p.add_argument("--export", metavar="FORM")
    p.add_argument("--precision")
    try:
        found, words = p.parse_known_args(list(argv))
        if found.export != "pd":
            raise UserError(f"--export writes pd, not '{found.export}'; triport convert writes others")
        if found.precision == "float64":
            raise UserError("PASSL's checkpoints are float32: leave out --export, or --precision float64")
        words += [] if found.precision is None else ["--precision", found.precision]
    except UserError as error:
        print(f"triport: error: {error}", file=sys.stderr)
        return 2
    return run.pretrain(words, backend=run.Backend("paddle", distributed.start, learner.make, write))


def write(folder: Path) -> None:
    """Write the checkpoint in `folder` into the run's folder as checkpoint_%04d.pd, the last epoch counted from 0.

    MoCo v3 with a ViT as main_moco.py saves it and MAE as main_pretrain.py, so that their --resume goes on; what PASSL
    does not have as `triport convert --to passl` does. As many of the files stay as the run keeps checkpoints.
    """
    groups, known = checkpoint.load(folder)
    made = recipe.parse(known["recipe"], Path(known["name"]))
    target = folder.parent.parent / f"checkpoint_{known['epoch'] - 1:04d}.pd"
    if not isinstance(made.model.encoder, ViT) or made.model.encoder.stem == "conv":
        convert(folder, target, to="passl", recipe=made, force=True)
    else:
        with atomic.replaced(target) as part:
            paddle.save(tree(made, groups["model"], groups["optimizer"], known), str(part))
    others = sorted(path for path in target.parent.glob("checkpoint_*.pd") if path != target)
    for path in others[: max(len(others) + 1 - made.monitor.keep, 0)]:
        path.unlink()
        path.with_name(f"{path.name}.json").unlink(missing_ok=True)  # a conversion leaves where it came from


def tree(made: Recipe, arrays: Mapping[str, np.ndarray], state: Mapping[str, np.ndarray], known: Any) -> dict[str, Any]:
    """What PASSL's script gives to paddle.save. Its optimiser goes by the tensors' own names, so these are as there."""
    model = passl_modules.skeleton(made.model, synchronised=known["processes"] > 1)
    layout = Tensors(made.model, None).layout
    values, moments = layout(arrays), layout(state)
    entries: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        stem, _, last = name.rpartition(".")
        own = f"{stem}.{STATISTICS.get(last, last)}" if stem else name
        # converting to SyncBatchNorm gives the last norms a scale and a shift that nothing trains
        value = values.get(own, np.full(parameter.shape, last == "weight", np.float32))
        parameter.set_value(np.ascontiguousarray(value))
        if f"exp_avg/{own}" in moments:
            slots = {slot: paddle.to_tensor(moments[f"{slot}/{own}"].copy("C")) for slot in ("exp_avg", "exp_avg_sq")}
            entries[parameter.name] = {"step": int(state["step"]), **slots}
    if isinstance(made.model.objective, MAE):
        named = [(name, p) for name, p in model.named_parameters() if p.name in entries]
        short = {p.name for name, p in named if len(p.shape) == 1 or name.endswith(".bias")}
        groups = [group(made, [p.name for _, p in named if p.name in short], 0.0)]
        groups += [group(made, [p.name for _, p in named if p.name not in short], made.optimizer.weight_decay)]
        optimizer = {"state": entries, "param_groups": groups}
        return {"model": model.state_dict(), "optimizer": optimizer, "epoch": known["epoch"] - 1, "scaler": SCALER}
    assert isinstance(made.model.encoder, ViT)
    every = group(made, [parameter.name for parameter in model.parameters()], made.optimizer.weight_decay)
    return {
        "epoch": known["epoch"],
        "arch": {384: "moco_vit_small", 768: "moco_vit_base"}.get(made.model.encoder.width, made.name),
        "state_dict": model.state_dict(),
        "optimizer": {"state": entries, "param_groups": [every]},
        "scaler": SCALER,
    }


def group(made: Recipe, names: list[str], decay: float) -> dict[str, Any]:
    """A group of parameters of PASSL's AdamW."""
    return {
        "lr": schedule.peak_lr(made),
        "lr_func": None,
        "betas": made.optimizer.betas,
        "eps": made.optimizer.eps,
        "weight_decay": decay,
        "use_master_param": False,
        "exp_avg_force_fp32": False,
        "grad_clip": None,
        "params": names,
    }
