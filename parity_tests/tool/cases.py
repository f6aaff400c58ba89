"""Golden cases: weights and inputs made again from their names, after the rules of goldens/README.md.

Imports no framework. `read(path)` gives a `Case`: its `spec`, `arrays()`, `inputs()`, optimiser and recorded numbers.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from triport.core.errors import UserError, closest
from triport.core.model.groups import Group, groups
from triport.core.model.inventory import inventory
from triport.core.spec import MAE, Classifier, Encoder, MoCo, ModelSpec, OptimizerSpec, ResNet, ViT
from triport.parity_tests.reference.layers import grid, position_table

GOLDENS = Path(__file__).parents[1] / "goldens"
Kind = Literal["moco", "mae", "finetune", "lincls"]
KINDS = ("moco", "mae", "finetune", "lincls")

# width, depth, heads, stem of the originals' names; recipes call the same shapes by other names
MOCO_VITS: dict[str, tuple[int, int, int, Literal["patch", "conv"]]] = {
    "vit_small": (384, 12, 12, "patch"),
    "vit_base": (768, 12, 12, "patch"),
    "vit_large": (1024, 24, 16, "patch"),
    "vit_conv_small": (384, 11, 12, "conv"),
    "vit_conv_base": (768, 11, 12, "conv"),
}
MAE_VITS = {  # width, depth, heads, patch
    "vit_base_patch16": (768, 12, 12, 16),
    "vit_large_patch16": (1024, 24, 16, 16),
    "vit_huge_patch14": (1280, 32, 16, 14),
}


# ---------------------------------------------------------------- arrays from names
def generator(name: str) -> np.random.Generator:
    """The generator that a name stands for."""
    return np.random.Generator(np.random.Philox(zlib.crc32(name.encode())))


def tensor(key: str, shape: tuple[int, ...]) -> NDArray:
    """The tensor of a state dict's key: float32, a batch counter int64."""
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    x = generator(key).standard_normal(shape, dtype=np.float32)
    if key.endswith("running_var"):
        return cast(NDArray, 1 + np.float32(0.1) * np.abs(x))
    x *= np.float32(0.02)
    return cast(NDArray, 1 + x) if len(shape) == 1 and key.endswith(".weight") else x


def images(name: str, n: int, size: int = 224) -> NDArray[np.float32]:
    """Images (n, 3, size, size) of white noise."""
    return generator(name).standard_normal((n, 3, size, size), dtype=np.float32)


# ---------------------------------------------------------------- what the models are
def moco_encoder(arch: str, frozen_patch: bool) -> Encoder:
    """The encoder that MoCo v3's code calls `arch`."""
    depths: dict[str, Literal[18, 34, 50, 101]] = {f"resnet{d}": d for d in (18, 34, 50, 101)}
    if arch in depths:
        return ResNet(depth=depths[arch], zero_init_residual=True)
    if arch not in MOCO_VITS:
        raise UserError(f"no MoCo v3 encoder is called '{arch}'.{closest(arch, [*MOCO_VITS, *depths])}")
    width, depth, heads, stem = MOCO_VITS[arch]
    return ViT(
        width=width,
        depth=depth,
        heads=heads,
        stem=stem,
        position="moco",
        initial_values="moco",
        frozen_patch=frozen_patch and stem == "patch",
    )


def mae_encoder(arch: str, initial_values: Literal["mae", "timm"]) -> ViT:
    """The encoder that MAE's code calls `arch`, with or without `mae_` in front."""
    plain = arch.removeprefix("mae_").removesuffix("_dec512d8b")
    if plain not in MAE_VITS:
        raise UserError(f"no MAE encoder is called '{arch}'.{closest(plain, MAE_VITS)}")
    width, depth, heads, patch = MAE_VITS[plain]
    return ViT(
        width=width,
        depth=depth,
        heads=heads,
        patch=(patch, patch),
        position="mae",
        initial_values=initial_values,
        trainable_position=initial_values == "timm",
    )


def model(kind: Kind, meta: Mapping[str, Any]) -> ModelSpec:
    """The model of a case."""
    arch = meta["arch"]
    if kind == "moco":
        encoder = moco_encoder(arch, frozen_patch=bool(meta.get("stop_grad_conv1", True)))
        objective = MoCo(temperature=meta["temperature"], momentum=meta["momentum"], momentum_cosine=False)
        return ModelSpec(encoder=encoder, objective=objective)
    if kind == "mae":
        mae = MAE(normalised_pixels=bool(meta["norm_pix_loss"]), mask_ratio=meta["mask_ratio"])
        return ModelSpec(encoder=mae_encoder(arch, "mae"), objective=mae)
    if kind == "finetune":
        pooling: Literal["token", "mean"] = "mean" if meta["global_pool"] else "token"
        head = Classifier(classes=1000, pooling=pooling, head_std=2e-5)
        return ModelSpec(encoder=mae_encoder(arch, "timm"), objective=head)
    encoder = moco_encoder(arch, frozen_patch=True)
    pooling = "token" if isinstance(encoder, ViT) else "mean"
    head = Classifier(classes=1000, pooling=pooling, head_std=0.01, frozen_encoder=True)
    return ModelSpec(encoder=encoder, objective=head)


def optimiser(meta: Mapping[str, Any]) -> OptimizerSpec | None:
    """The update rule of a case that trains; `lr` is absolute and stays as it is."""
    if "optimizer" not in meta:
        return None
    kind = str(meta["optimizer"])
    optional = {key: meta[key] for key in ("eps", "trust") if key in meta}
    if "betas" in meta:
        optional["betas"] = tuple(meta["betas"])
    return OptimizerSpec(
        kind=cast(Literal["adamw", "lars", "sgd"], kind),
        lr=meta["lr"],
        weight_decay=meta["weight_decay"],
        decays="matrices" if "no_decay" in meta else "all",
        lr_batch=meta["batch"],
        **optional,
    )


# ---------------------------------------------------------------- a case
@dataclass(frozen=True, eq=False)
class Case:
    """One golden file: what it was recorded on and what was recorded."""

    name: str
    kind: Kind
    meta: Mapping[str, Any]
    spec: ModelSpec
    optimizer: OptimizerSpec | None
    record: Mapping[str, NDArray]

    @property
    def precision(self) -> Literal["float32", "float64"]:
        """In which the original code computed."""
        return "float64" if self.meta.get("dtype") == "float64" else "float32"

    @property
    def steps(self) -> int:
        """How many training steps were recorded."""
        return sum(key.startswith("step") and key.endswith("/loss") for key in self.record)

    @property
    def momentum(self) -> float:
        """Momentum of the momentum encoder, the same at each step; 0 where there is none."""
        return self.spec.objective.momentum if isinstance(self.spec.objective, MoCo) else 0.0

    def rule_errors(self) -> dict[str, float]:
        """How far this project's learning-rate scale and weight decay are from the recorded ones, by record."""
        errors = {}
        for key in self.record:
            if key.startswith("lrd"):
                decay, _, name = key.removeprefix("lrd").partition("/")
                rule = self._rules(float(decay))[name]
                errors[key] = float(np.abs(np.array(rule) - self.record[key]).max())
        return errors

    @lru_cache(maxsize=4)  # noqa: B019 (a handful of cases in a process)
    def _rules(self, decay: float) -> Mapping[str, Group]:
        optimizer = OptimizerSpec(
            kind="adamw", lr=1.0, weight_decay=0.05, decays="matrices_but_tokens", layer_decay=decay
        )
        return groups(inventory(self.spec), optimizer)

    def arrays(self) -> dict[str, NDArray]:
        """Every tensor of the state dict; a 2-thread draw of ViT-L takes a few seconds."""
        with ThreadPoolExecutor(2) as pool:
            keys = self.meta["keys"]
            return dict(zip(keys, pool.map(self._tensor, keys), strict=True))

    def _tensor(self, key: str) -> NDArray:
        shape = tuple(self.meta["keys"][key])
        if self.precision == "float64":  # position tables are drawn as well, so that no rounding of theirs enters
            return self._cast(tensor(key, shape))
        if not key.endswith("pos_embed") or self.kind == "finetune":
            return tensor(key, shape)
        encoder = self.spec.encoder
        assert isinstance(encoder, ViT)
        return position_table(encoder.position, shape[-1], *grid(encoder)).astype(np.float32)

    def _cast(self, array: NDArray) -> NDArray:
        """An array that was drawn in float32, in the record's number type; integers stay."""
        return array.astype(self.precision) if array.dtype == np.float32 else array

    def inputs(self) -> dict[str, NDArray]:
        """What the model is fed, by name: MoCo also has `images`, its first view, for evaluation."""
        return {name: self._cast(array) for name, array in self._drawn().items()}

    def _drawn(self) -> dict[str, NDArray]:
        n = int(self.meta["batch"])
        first = images("view1", n)
        if self.kind == "moco":
            return {"images": first, "view1": first, "view2": images("view2", n)}
        if self.kind == "mae":
            assert isinstance(self.spec.encoder, ViT)
            rows, columns = grid(self.spec.encoder)
            return {"images": first, "mask_noise": generator("mask_noise").random((n, rows * columns), np.float32)}
        if self.kind == "finetune":
            return {"images": first, "labels": generator("labels").integers(0, 1000, n)}
        return {"images": first}


def read(path: str | Path) -> Case:
    """Read a golden file. Raises UserError for a file that is not one."""
    path = Path(path)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in GOLDENS.glob("*.safetensors")))
        raise UserError(f"no golden file at {path}; shipped ones: {known}")
    try:
        with safe_open(path, framework="np") as file:
            meta = dict(json.loads((file.metadata() or {}).get("meta", "{}")))
            record = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not a golden file: {' '.join(str(error).split())}") from None
    name = str(meta.get("case", path.stem))
    kind = name.partition("-")[0]
    if kind not in KINDS or "keys" not in meta:
        raise UserError(f"{path.name} is not a model case: its name should begin with one of {', '.join(KINDS)}")
    if meta.get("dtype", "float32") not in ("float32", "float64"):
        raise UserError(f"{path.name} was recorded in {meta['dtype']}: only float32 and float64 can be replayed")
    kind = cast(Kind, kind)
    try:
        return Case(name, kind, meta, model(kind, meta), optimiser(meta), record)
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError, ArithmeticError) as error:
        raise UserError(f"{path} does not say what model it is of ({type(error).__name__}: {error})") from None


def summary(prefix: str, arrays: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """Of each array `<prefix>_norm/<key>`, its length in float64, and `<prefix>_head/<key>`, its first eight values."""
    out: dict[str, NDArray] = {}
    for key, array in arrays.items():
        flat = np.asarray(array).ravel()
        out[f"{prefix}_norm/{key}"] = np.array([np.sqrt((flat.astype(np.float64) ** 2).sum())])
        out[f"{prefix}_head/{key}"] = flat[:8]
    return out
