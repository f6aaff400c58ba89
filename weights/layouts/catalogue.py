"""Every layout, and the search for one by name."""

from __future__ import annotations

from triport.core.errors import UserError, closest
from triport.weights.canonical import Method
from triport.weights.layouts import extracted, hf, libai, lightning, mmpretrain, originals, paddle, torchvision
from triport.weights.layouts.layout import Layout

# Where two layouts read a file alike, the earlier one is named.
LAYOUTS: tuple[Layout, ...] = (
    *originals.LAYOUTS,
    *torchvision.LAYOUTS,
    *mmpretrain.LAYOUTS,
    *paddle.LAYOUTS,
    *libai.LAYOUTS,
    *hf.LAYOUTS,
    *lightning.LAYOUTS,
    *extracted.LAYOUTS,
)
BY_NAME = {layout.name: layout for layout in LAYOUTS}

# One word for a project: which of its layouts is meant follows from what is to be written.
PROJECTS = {
    "moco-v3": ("moco-v3", "moco-v3-linear"),
    "mae": ("mae", "mae-finetune"),
    "mmpretrain": ("mmpretrain-moco", "mmpretrain-mae", "mmpretrain-cls"),
    "mmselfsup": ("mmselfsup-0-moco", "mmpretrain-moco", "mmpretrain-mae", "mmpretrain-backbone"),
    "solo-learn": ("solo-learn-moco", "solo-learn-mae"),
    "passl": ("passl-moco", "passl-deit", "passl-mae"),
    "libai": ("libai-moco", "libai-mae", "libai-mae-finetune", "libai-vit"),
    "libai-0.1": ("libai-moco-0.1", "libai-mae-0.1", "libai-mae-finetune-0.1", "libai-vit-0.1"),
    "hf": ("hf-vit", "hf-vit-mae"),
    "hf-5": ("hf-vit-5", "hf-vit-mae-5"),
}


def named(name: str) -> tuple[Layout, ...]:
    """The layouts that a word may mean: one, or those of a project; UserError with the list where there is none."""
    if name not in BY_NAME and name not in PROJECTS:
        names = [*BY_NAME, *(word for word in PROJECTS if word not in BY_NAME)]
        raise UserError(f"no layout is called '{name}'.{closest(name, names)} There are: {', '.join(names)}")
    return tuple(BY_NAME[own] for own in PROJECTS.get(name, (name,)))


def target(name: str, method: Method, pooled: bool = False, head_norm: bool = False) -> Layout:
    """The layout of a word to write a model in, one that has a place for its features and its head if there is any.

    pooled: features are averaged patches after fc_norm; head_norm: a batch norm stands before the head.
    """
    choices = tuple(layout for layout in named(name) if not layout.read_only)
    if not choices:
        raise UserError(f"'{name}' is only read, not written: {named(name)[0].title}. Choose another --to.")
    holding = [layout for layout in choices if method in layout.methods]
    fitting = [layout for layout in holding if ("mean" if pooled else "token") in layout.pooling]
    whole = [layout for layout in fitting if layout.head_norm or not head_norm]
    return (whole or fitting or holding or choices)[0]
