"""Checkpoints as PASSL's scripts write them: triport pretrain RECIPE --backend paddle --export pd."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from backends.paddle import build, distributed, learner
from backends.paddle.quiet import nn, paddle
from core import checkpoint, recipe, run, schedule
from core.errors import UserError
from core.options import Parser
from core.spec import MoCo, Recipe, ViT
from weights.convert import convert

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
    try:
        found, words = p.parse_known_args(list(argv))
        if found.export != "pd":
            raise UserError(f"--export writes pd, not '{found.export}'; triport convert writes others")
    except UserError as error:
        print(f"triport: error: {error}", file=sys.stderr)
        return 2
    return run.pretrain(words, backend=run.Backend("paddle", distributed.start, learner.make, write))


def write(folder: Path) -> None:
    """Write the checkpoint in `folder` into the run's folder as checkpoint_%04d.pd, the last epoch counted from 0.

    A MoCo v3 ViT as main_moco.py saves it, so that its --resume goes on; others as `triport convert --to passl` does.
    As many of the files stay as the run keeps checkpoints.
    """
    groups, known = checkpoint.load(folder)
    made = recipe.parse(known["recipe"], Path(known["name"]))
    target = folder.parent.parent / f"checkpoint_{known['epoch'] - 1:04d}.pd"
    encoder = made.model.encoder
    if not (isinstance(made.model.objective, MoCo) and isinstance(encoder, ViT) and encoder.stem == "patch"):
        convert(folder, target, to="passl", recipe=made, force=True)
    else:
        part = target.with_suffix(".part")
        paddle.save(tree(made, groups["model"], groups["optimizer"], known), str(part))
        part.replace(target)
    others = sorted(path for path in target.parent.glob("checkpoint_*.pd") if path != target)
    for path in others[: max(len(others) + 1 - made.monitor.keep, 0)]:
        path.unlink()
        path.with_name(f"{path.name}.json").unlink(missing_ok=True)  # a conversion leaves where it came from


def tree(made: Recipe, arrays: Mapping[str, np.ndarray], state: Mapping[str, np.ndarray], known: Any) -> dict[str, Any]:
    """What main_moco.py gives to paddle.save. Its optimiser goes by the tensors' own names, so these are as there."""
    model = skeleton(made, synchronised=known["processes"] > 1)
    held, moments = build.turned(made.model, arrays), build.turned(made.model, state)
    entries: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        stem, _, last = name.rpartition(".")
        own = f"{stem}.{STATISTICS.get(last, last)}"
        # converting to SyncBatchNorm gives the last norms a scale and a shift that nothing trains
        value = held.get(own, np.full(parameter.shape, last == "weight", np.float32))
        parameter.set_value(np.ascontiguousarray(value))
        if f"exp_avg/{own}" in moments:
            slots = {slot: paddle.to_tensor(moments[f"{slot}/{own}"].copy("C")) for slot in ("exp_avg", "exp_avg_sq")}
            entries[parameter.name] = {"step": int(state["step"]), **slots}
    group = {
        "lr": schedule.peak_lr(made),
        "lr_func": None,
        "betas": made.optimizer.betas,
        "eps": made.optimizer.eps,
        "weight_decay": made.optimizer.weight_decay,
        "use_master_param": False,
        "exp_avg_force_fp32": False,
        "grad_clip": None,
        "params": [parameter.name for parameter in model.parameters()],
    }
    return {
        "epoch": known["epoch"],
        "arch": {384: "moco_vit_small", 768: "moco_vit_base"}.get(made.model.encoder.width, made.name),  # type: ignore[union-attr]
        "state_dict": model.state_dict(),
        "optimizer": {"state": entries, "param_groups": [group]},
        "scaler": SCALER,
    }


# ---------------------------------------------------------------- layers in the order in which PASSL makes them
def skeleton(made: Recipe, synchronised: bool) -> nn.Layer:
    """PASSL's model without values. Paddle names tensors by counting the layers made so far, also forgotten ones."""
    encoder, objective = made.model.encoder, made.model.objective
    assert isinstance(encoder, ViT) and isinstance(objective, MoCo)
    width, hidden, dim = encoder.width, objective.hidden, objective.dim
    with paddle.utils.unique_name.guard(), paddle.LazyGuard():
        model = nn.Layer()
        model.base_encoder = VisionTransformerMoCo(encoder, hidden)
        model.momentum_encoder = VisionTransformerMoCo(encoder, hidden)
        model.base_encoder.head = _mlp([width, hidden, hidden, dim])
        model.momentum_encoder.head = _mlp([width, hidden, hidden, dim])
        model.predictor = _mlp([dim, hidden, dim])
        return nn.SyncBatchNorm.convert_sync_batchnorm(model) if synchronised else model


class VisionTransformerMoCo(nn.Layer):
    """The encoder. Its tensors are called after this class, so it has PASSL's name."""

    def __init__(self, encoder: ViT, hidden: int) -> None:
        super().__init__()
        width, wide = encoder.width, int(encoder.width * encoder.mlp_ratio)
        self.patch_embed = nn.Layer()
        self.patch_embed.proj = nn.Conv2D(encoder.channels, width, encoder.patch, stride=encoder.patch)
        places = [1, 1 + encoder.image[0] // encoder.patch[0] * (encoder.image[1] // encoder.patch[1]), width]
        self.pos_embed = self.create_parameter(places)
        self.cls_token = self.create_parameter([1, 1, width])
        self.blocks = nn.LayerList()
        for _ in range(encoder.depth):
            block = nn.Layer()
            block.norm1, block.attn = nn.LayerNorm(width), nn.Layer()
            block.attn.qkv, block.attn.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            block.norm2, block.mlp = nn.LayerNorm(width), nn.Layer()
            block.mlp.fc1, block.mlp.fc2 = nn.Linear(width, wide), nn.Linear(wide, width)
            self.blocks.append(block)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, hidden)  # made and thrown away, but counted
        del self.head
        self.pos_embed = self.create_parameter(places)  # the table replaces what was there


def _mlp(widths: list[int]) -> nn.Sequential:
    steps: list[nn.Layer] = []
    for i, (into, out) in enumerate(pairwise(widths)):
        last = i == len(widths) - 2
        norm = nn.BatchNorm1D(out, weight_attr=False, bias_attr=False) if last else nn.BatchNorm1D(out)
        steps += [nn.Linear(into, out, bias_attr=False), norm, *([] if last else [nn.ReLU()])]
    return nn.Sequential(*steps)
