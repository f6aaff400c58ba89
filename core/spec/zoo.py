"""The named models: whose recipe each one is, what was reported for it, where the authors' weights lie."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from triport.core.errors import UserError, closest
from triport.core.spec import aliases, recipe
from triport.core.spec.spec import ModelSpec

META = "https://dl.fbaipublicfiles.com/"  # under CC BY-NC 4.0, as the code they come with
MMLAB = "https://download.openmmlab.com/mmselfsup/1.x/mocov3/"
LARGE = "mocov3_vit-large-p16_64xb64-amp-coslr-300e_in1k"


@dataclass(frozen=True)
class Model:
    """A name for the model of its first recipe; the other recipes train or use the same model."""

    name: str
    recipes: tuple[str, ...]
    changes: tuple[str, ...] = ()  # overrides on the first recipe, for sizes that no recipe is about
    weights: tuple[str, ...] = ()  # files of the authors

    @property
    def spec(self) -> ModelSpec:
        """The model's sizes."""
        return _spec(self.recipes[0], self.changes)

    @property
    def reported(self) -> dict[str, dict[str, float]]:
        """Recipe -> task -> top-1 % that its source reports; nothing for sizes that no recipe is about."""
        return {} if self.changes else {name: recipe.load(name).reported for name in self.recipes}


def models() -> tuple[Model, ...]:
    """Return every named model."""
    return MODELS


def names() -> list[str]:
    """Return the names of the models, in the table's order."""
    return [model.name for model in MODELS]


def find(name: str) -> Model:
    """Return the model of that name: this suite's, or another project's for one of the model's recipes."""
    alias = aliases.aliases().get(name)
    for model in MODELS:
        if model.name == name or (alias and alias.recipe in model.recipes and not model.changes):
            return model
    raise UserError(f"No model '{name}'.{near(name) or ' `triport models` lists them.'}")


def knows(name: str) -> bool:
    """Say whether a name is a model's, this suite's or another project's."""
    return name in names() or name in aliases.aliases()


def near(name: str) -> str:
    """Return " Did you mean 'x'?" for the nearest of models, other projects' names and recipes; "" for none."""
    return closest(name, names()) or closest(name, [*aliases.aliases(), *recipe.names()])


@functools.cache
def _spec(name: str, changes: tuple[str, ...]) -> ModelSpec:
    return recipe.load(name, changes).model


def _sizes(depth: int) -> tuple[str, ...]:
    return (f"model.encoder.depth={depth}",)


def _conv(name: str, classifier: str) -> tuple[Model, Model]:
    stem = ("model.encoder.stem=conv", *_sizes(11))
    size = name.removeprefix("moco_v3_")
    return Model(name, (f"moco_v3/{size}_300ep",)), Model(f"{name}_classifier", (classifier,), stem)


def _mae(size: str, weights: str) -> tuple[Model, Model]:
    pretraining = (f"mae/vit_{size}_1600ep", f"mae/vit_{size}_800ep")
    classifier = (f"transfer/mae_vit_{size}_finetune", f"transfer/mae_vit_{size}_linear")
    return (
        Model(f"mae_vit_{size}", pretraining, weights=(f"{META}mae/pretrain/{weights.format('pretrain')}",)),
        Model(f"mae_vit_{size}_classifier", classifier, weights=(f"{META}mae/finetune/{weights.format('finetuned')}",)),
    )


TRANSFER = tuple(f"transfer/moco_vit_base_{name}" for name in ("cifar10", "cifar100", "flowers", "pets"))
RESNET, PROBE = "moco_v3/resnet50_100ep", "transfer/moco_resnet50_linear"

PHOTOS = {
    "moco_v3_resnet18": "moco_resnet18",
    "moco_v3_vit_small": "moco_vit_small",
    "mae_vit_small": "mae_vit_small",
}

MODELS: tuple[Model, ...] = (
    Model(
        "moco_v3_resnet50",
        tuple(f"moco_v3/resnet50_{n}ep" for n in (100, 300, 800, 1000)),
        weights=tuple(f"{META}moco-v3/r-50-{n}ep/r-50-{n}ep.pth.tar" for n in (100, 300, 1000)),
    ),
    Model(
        "moco_v3_vit_small",
        ("moco_v3/vit_small_300ep", "moco_v3/vit_small_300ep_1node"),
        weights=(f"{META}moco-v3/vit-s-300ep/vit-s-300ep.pth.tar",),
    ),
    Model(
        "moco_v3_vit_base",
        ("moco_v3/vit_base_300ep",),
        weights=(f"{META}moco-v3/vit-b-300ep/vit-b-300ep.pth.tar",),
    ),
    Model(
        "moco_v3_vit_large",
        ("moco_v3/vit_large_300ep",),
        weights=(f"{MMLAB}{LARGE}/{LARGE}-224_20220829-9b88a442.pth",),
    ),
    Model(
        "moco_v3_resnet50_classifier",
        (PROBE,),
        weights=tuple(f"{META}moco-v3/r-50-{n}ep/linear-{n}ep.pth.tar" for n in (100, 300, 1000)),
    ),
    Model(
        "moco_v3_vit_small_classifier",
        ("transfer/moco_vit_small_linear", "transfer/moco_vit_small_finetune"),
        weights=(f"{META}moco-v3/vit-s-300ep/linear-vit-s-300ep.pth.tar",),
    ),
    Model(
        "moco_v3_vit_base_classifier",
        (
            "transfer/moco_vit_base_linear",
            "transfer/moco_vit_base_finetune",
            "transfer/passl_deit_base_finetune",
            "transfer/mmpretrain_vit_base_finetune",
        ),
        weights=(f"{META}moco-v3/vit-b-300ep/linear-vit-b-300ep.pth.tar",),
    ),
    *(Model(f"moco_v3_vit_base_{name.rpartition('_')[2]}", (name,)) for name in TRANSFER),
    Model("moco_v3_vit_large_classifier", ("transfer/moco_vit_large_finetune", "transfer/moco_vit_large_linear")),
    *_conv("moco_v3_vit_conv_small", "transfer/moco_vit_small_linear"),
    *_conv("moco_v3_vit_conv_base", "transfer/moco_vit_base_linear"),
    *_mae("base", "mae_{}_vit_base.pth"),
    *_mae("large", "mae_{}_vit_large.pth"),
    *_mae("huge", "mae_{}_vit_huge.pth"),
    Model("mae_vit_huge_448_classifier", ("transfer/mae_vit_huge_finetune_448",)),
    *(Model(f"moco_v3_resnet{depth}", (RESNET,), _sizes(depth)) for depth in (18, 34, 101)),
    *(Model(f"moco_v3_resnet{depth}_classifier", (PROBE,), _sizes(depth)) for depth in (18, 34, 101)),
    Model("moco_v3_vit_tiny", ("tiny/moco_vit_tiny",)),
    Model("moco_v3_vit_tiny_classifier", ("tiny/moco_linear", "tiny/moco_finetune")),
    Model("moco_v3_vit_conv_tiny", ("tiny/moco_vit_conv_tiny",)),
    Model("moco_v3_resnet_tiny", ("tiny/moco_resnet_tiny",)),
    Model("moco_v3_resnet10_tiny", ("tiny/moco_resnet10",)),
    Model("mae_vit_tiny", ("tiny/mae_vit_tiny",)),
    Model("mae_vit_tiny_classifier", ("tiny/mae_finetune", "tiny/mae_linear")),
    *(
        Model(f"{name}_photos{end}", (f"photos/{recipe_name}{task}",))
        for name, recipe_name in PHOTOS.items()
        for end, task in (("", ""), ("_classifier", "_linear"))
    ),
)
