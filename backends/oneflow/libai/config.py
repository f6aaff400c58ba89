"""LiBai's LazyConfig that changes a named recipe (`recipe = dict(name=...)`), as words of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triport.core.errors import UserError
from triport.core.spec.foreign import libai

DEGREES = {f"{word}_parallel": f"train.dist.{word}_parallel_size" for word in ("data", "tensor", "pipeline")}
GRAPH, PERIOD, RECIPE = "graph.enabled", "train.checkpointer.period", "recipe.name"
# LazyConfig's name -> the word for it that a run understands
WORDS = {
    "train.output_dir": "--out",
    "train.log_period": "--log-steps",
    "train.train_epoch": "schedule.epochs",
    "train.seed": "seed",
    "model.img_size": "model.encoder.image",
    "model.patch_size": "model.encoder.patch",
    "model.in_chans": "model.encoder.channels",
    "model.embed_dim": "model.encoder.width",
    "model.depth": "model.encoder.depth",
    "model.num_heads": "model.encoder.heads",
    "model.mlp_ratio": "model.encoder.mlp_ratio",
    "model.drop_path_rate": "model.encoder.drop_path",
    "model.num_classes": "model.objective.classes",
    "optim.weight_decay": "optimizer.weight_decay",
    "optim.eps": "optimizer.eps",
    "optim.betas": "optimizer.betas",
    "optim.momentum": "optimizer.momentum",
    "optim.params.clip_grad_max_norm": "optimizer.clip_norm",
}
BATCH = ("train.train_micro_batch_size", "train.global_batch_size", "train.num_accumulation_steps")
OFF = ("train.zero_optimization.enabled", "train.activation_checkpoint.enabled")
HALF = "train.amp.enabled"
TAKEN = (HALF, *DEGREES.values(), GRAPH, PERIOD, RECIPE, *WORDS, *BATCH, *OFF, "train.warmup_ratio", "optim.lr")


@dataclass
class Given:
    """The settings of a file and of the command line, by LazyConfig's names."""

    values: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None

    def degree(self, option: str) -> int | None:
        """The degree of an option such as "tensor_parallel", where it is given."""
        return self.values.get(DEGREES[option])

    def tuning(self) -> dict[str, Any]:
        """The settings of `finetune`."""
        return {key: value for key, value in self.values.items() if key.startswith("finetune.")}

    def of_model(self) -> Given:
        """The settings of the model alone, which is all that counts where nothing is trained."""
        return Given({k: v for k, v in self.values.items() if k.startswith("model.") or k == RECIPE}, self.path)

    def rest(self) -> str:
        """What the file says and a run takes from its recipe, in short; "" for nothing."""
        known = (*TAKEN, "finetune", "recipe")
        left = [key for key in self.values if not key.startswith(known)]
        if self.values.get(HALF):
            left.append(f"{HALF} (off: OneFlow computes in float32 here, always on CPUs)")
        return ", ".join(left)


def read(path: Path) -> dict[str, Any]:
    """Read a LazyConfig, without executing it, into flat names and plain values."""
    settings = flat(libai.read_tree(path))
    return {
        key: value for key, value in settings if not key.rpartition(".")[2].startswith("_")
    }  # _target_: what to call


def flat(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested names with dots; only plain values and lists of them."""
    found: list[tuple[str, Any]] = []
    for key, value in content.items():
        if isinstance(value, Mapping):
            found += flat(value, f"{prefix}{key}.")
        elif isinstance(value, (str, int, float)) or (
            isinstance(value, (list, tuple)) and all(isinstance(part, (int, float)) for part in value)
        ):
            found.append((f"{prefix}{key}", value))
    return found


def words(config: Given, data: int, given: Sequence[str]) -> list[str]:
    """Return a command line's words with the settings added that it does not give itself. data: the degree."""
    values = config.values
    for key in OFF:
        if values.get(key):
            raise UserError(f"{key} is on: OneFlow 0.9.0 cannot do that on a CPU. Set it to False.")
    named = bool(given) and not given[0].startswith("-") and "=" not in given[0]
    made = {WORDS[key]: _text(value) for key, value in values.items() if key in WORDS}
    own = {word.partition("=")[0]: word.partition("=")[2] for word in given}
    batch, steps = _batch(values, data)
    if batch is not None:
        made["batch"] = str(batch)
    if steps is not None and "--micro-batch" not in own:
        made["--accumulate"] = str(steps)
    if "optim.lr" in values:  # LiBai's is of the whole batch, whatever that is
        whole = own.get("batch", made.get("batch"))
        if whole is None:
            raise UserError("optim.lr is of a whole batch: say train.global_batch_size as well.")
        made |= {"optimizer.lr": _text(values["optim.lr"]), "optimizer.lr_batch": whole}
    if "train.warmup_ratio" in values and "train.train_epoch" in values:
        made["schedule.warmup_epochs"] = _text(values["train.warmup_ratio"] * values["train.train_epoch"])
    more = [f"{name}={text}" for name, text in made.items() if name not in own]
    if named:
        return [given[0], *more, *given[1:]]
    return [*([str(values[RECIPE])] if RECIPE in values else []), *more, *given]


def _text(value: object) -> str:
    """A value as TOML has it; a text as it is."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _batch(values: Mapping[str, Any], data: int) -> tuple[int | None, int | None]:
    """LiBai's rule: images of a step are those of a micro-batch times data degree times accumulation steps."""
    micro, whole, steps = (values.get(name) for name in BATCH)
    if micro is None:
        return whole, steps
    if whole is None:
        return micro * data * (steps or 1), steps
    if steps is None and whole % (micro * data) == 0:
        steps = whole // (micro * data)
    if steps is None or micro * data * steps != whole:
        raise UserError(
            f"train.global_batch_size {whole} is not train.train_micro_batch_size {micro} x data degree {data} x "
            f"train.num_accumulation_steps {steps if steps is not None else '(a whole number)'}."
        )
    return whole, steps
