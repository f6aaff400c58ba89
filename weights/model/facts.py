"""What a file says of itself beside its arrays: epoch, architecture words, heads, target, licence."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triport.core.errors import UserError
from triport.core.model.inventory import grid
from triport.core.spec import MAE, AugmentSpec, Pair, Recipe, ViT
from triport.core.spec import recipe as recipes
from triport.weights.canonical import Architecture
from triport.weights.layouts.layout import Heads, Layout
from triport.weights.model.candidate import Candidate
from triport.weights.model.configured import of_timm, of_transformers
from triport.weights.model.reading import Reading

UNKNOWN = "unknown"  # written as architecture word where the heads are not known
MAX_TEXT = 1 << 20  # bytes of a JSON file beside a checkpoint
MAX_NUMBER = 1 << 53
MAX_DEPTH = 100  # of JSON
SIZES = {"tiny": (192, 12), "small": (384, 12), "base": (768, 12), "large": (1024, 24), "huge": (1280, 32)}
HF_MODELS = ("vit", "vit_mae")  # model_type
HF_NORM_EPS = 1e-12  # of ViTConfig and ViTMAEConfig, where a config.json does not say it
LABEL = re.compile(r"LABEL_\d+\Z")  # what transformers calls classes without names
KEY = "provenance"  # under which it stands in safetensors metadata and in the file beside others


@dataclass
class Facts:
    """Read from the file's own words, its provenance, and the small files beside it."""

    epoch: int | None = None  # completed epochs
    arch: str | None = None
    archs: list[str] = field(default_factory=list)  # everything that may be an architecture's name
    heads: int | None = None
    decoder_heads: int | None = None
    norm_eps: float | None = None  # of the layer norms
    depth: int | None = None  # blocks, of a model of this width
    grid: Pair | None = None  # rows and columns of patches
    pooling: str = ""  # timm's word for what becomes the feature
    classes: list[str] = field(default_factory=list)  # their names
    normalised_pixels: bool | None = None
    mask_ratio: float | None = None
    evaluate: AugmentSpec | None = None  # how images are prepared
    counter: int | None = None  # of every batch norm, where a conversion noted what its layout has no place for
    recipe: str | None = None
    made_by: Recipe | None = None  # the recipe of this project's own run
    lengthened: list[str] = field(default_factory=list)  # of such a run: from how many epochs, and when
    optimizer: bool = False
    own: bool = False  # this project wrote the file
    provenance: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)  # config.json beside it, which may be about another file
    configured: bool = False  # config.json is about this model
    other: str = ""  # what it says that this model does otherwise


def read(tree: object, metadata: Mapping[str, str], path: Path) -> Facts:
    """Gather what a file says; nothing here is trusted to be of the right kind."""
    facts = Facts()
    if isinstance(tree, Mapping):
        _from_tree(facts, tree)
    from_provenance(facts, _parse(metadata.get(KEY, "")))
    _from_own(facts, metadata.get("recipe_toml"))
    _from_words(facts, metadata)
    folder = path if path.is_dir() else path.parent
    facts.config = read_json(folder / "config.json")
    if path.name == "model.safetensors":
        _from_state(facts, read_json(folder / "state.json"))
    return facts


def _from_tree(facts: Facts, tree: Mapping[Any, Any]) -> None:
    facts.optimizer = bool(tree.get("optimizer") or tree.get("graph"))  # LiBai names it graph when it compiles
    facts.arch = tree["arch"] if isinstance(tree.get("arch"), str) and tree["arch"] != UNKNOWN else None
    facts.epoch = _number(tree.get("epoch"))
    arguments = tree.get("args")
    arguments = arguments if isinstance(arguments, Mapping) else {}
    facts.archs = [word for word in (facts.arch, arguments.get("model")) if isinstance(word, str)]
    target = arguments.get("norm_pix_loss")
    facts.normalised_pixels = target if isinstance(target, bool) else None
    if "state_dict" not in tree and facts.epoch is not None:
        facts.epoch += 1  # MAE and DeiT note the epoch that has just ended, counted from 0
    meta = tree.get("meta")
    if isinstance(meta, Mapping) and facts.epoch is None:
        facts.epoch = _number(meta.get("epoch"))


def from_provenance(facts: Facts, found: Mapping[str, Any]) -> None:
    """Take what this project noted when it wrote the file."""
    if not found:
        return
    facts.provenance, facts.own = dict(found), found.get("to_layout") == "triport"
    for key in ("heads", "decoder_heads", "epoch", "counter"):
        if getattr(facts, key) is None:
            setattr(facts, key, _number(found.get(key)))
    sides = found.get("grid")
    if isinstance(sides, list) and len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides):
        facts.grid = (sides[0], sides[1])
    if facts.arch is None and isinstance(found.get("arch"), str):
        facts.arch = found["arch"]
        facts.archs.append(found["arch"])
    if facts.normalised_pixels is None and isinstance(found.get("normalised_pixels"), bool):
        facts.normalised_pixels = found["normalised_pixels"]
    facts.recipe = found["recipe"] if isinstance(found.get("recipe"), str) else None
    if facts.norm_eps is None:
        facts.norm_eps = _positive(found.get("norm_eps"))
    patches, names = found.get("grid"), found.get("classes")
    if isinstance(patches, list) and len(patches) == 2 and all(_number(n) for n in patches):
        facts.grid = (patches[0], patches[1])
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        facts.classes = names


def _from_config(facts: Facts, architecture: Architecture) -> None:
    """config.json of Hugging Face, if it is about a model of this width."""
    found = facts.config
    if found.get("model_type") not in HF_MODELS or found.get("hidden_size", architecture.width) != architecture.width:
        return
    facts.configured, facts.other = True, of_transformers(found)
    facts.depth = _number(found.get("num_hidden_layers"))
    facts.heads = facts.heads or _number(found.get("num_attention_heads"))
    facts.decoder_heads = facts.decoder_heads or _number(found.get("decoder_num_attention_heads"))
    eps = found.get("layer_norm_eps", HF_NORM_EPS)
    if facts.norm_eps is None:
        facts.norm_eps = _positive(eps)
    target = found.get("norm_pix_loss")
    if facts.normalised_pixels is None and isinstance(target, bool):
        facts.normalised_pixels = target
    names = found.get("id2label")
    if isinstance(names, dict) and all(isinstance(name, str) for name in names.values()):
        facts.classes = facts.classes or [
            names[key] for key in sorted(names, key=_place) if not LABEL.match(names[key])
        ]
    facts.grid = facts.grid or _grid(found.get("image_size"), found.get("patch_size"))


def _from_timm(facts: Facts, architecture: Architecture) -> None:
    """config.json of timm, if it is about a model of this width."""
    found = facts.config
    own, pretrained = found.get("model_args") or {}, found.get("pretrained_cfg")
    if not isinstance(pretrained, dict) or not isinstance(own, dict) or "architecture" not in found:
        return
    if found.get("num_features", architecture.width) != architecture.width:
        return
    facts.heads = facts.heads or _number(own.get("num_heads"))
    facts.depth = _number(own.get("depth"))
    facts.pooling = str(own.get("global_pool", found.get("global_pool", "")))
    facts.other = of_timm(found, own, architecture)
    names = pretrained.get("label_names")
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        facts.classes = facts.classes or names


def _place(key: str) -> tuple[int, str]:
    return (int(key) if key.isdecimal() else -1, key)


def _grid(image: object, patch: object) -> Pair | None:
    """Rows and columns of patches, where both sizes are whole numbers or pairs of them."""
    pairs = [value if isinstance(value, list) and len(value) == 2 else [value, value] for value in (image, patch)]
    sizes = [_number(n) or 0 for pair in pairs for n in pair]
    return (sizes[0] // sizes[2], sizes[1] // sizes[3]) if all(sizes) else None


def _from_state(facts: Facts, found: Mapping[str, Any]) -> None:
    """state.json of this project's checkpoints."""
    if "recipe" in found and "checksums" in found:
        facts.epoch = _number(found.get("epoch")) if facts.epoch is None else facts.epoch
        _from_own(facts, found["recipe"])
        if isinstance(found.get("licence"), str):  # pretraining that began with other weights
            facts.provenance.setdefault("licence", found["licence"])
        _from_run(facts, found)


def _from_words(facts: Facts, metadata: Mapping[str, str]) -> None:
    """The head of this project's own safetensors files."""
    words: dict[str, Any] = {}
    for key in ("classes", "lengthened"):
        with suppress(ValueError, RecursionError):
            words[key] = json.loads(metadata.get(key, "null")[:MAX_TEXT])
    _from_run(facts, words)


def _from_run(facts: Facts, found: Mapping[str, Any]) -> None:
    """What a run says of its classes, and of its length where that was changed on the way."""
    names, changes = found.get("classes"), found.get("lengthened")
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        facts.classes = names
    for change in changes if isinstance(changes, list) else []:
        before, step = (change.get("epochs"), change.get("step")) if isinstance(change, dict) else (None, None)
        if isinstance(before, list) and before and _number(before[0]) and _number(step):
            facts.lengthened.append(f"from {before[0]} epochs at step {step}")


def _from_own(facts: Facts, toml: object) -> None:
    """The recipe that this project's own files carry."""
    if isinstance(toml, str):
        with suppress(UserError):
            facts.made_by = recipes.parse(toml, Path("recipe.toml"))
            take(facts.made_by, facts)
            facts.own = True


def claim(facts: Facts, candidate: Candidate) -> list[str]:
    """Take the heads that the file's own architecture word tells in its layout, or in one that reads the file alike.

    Hugging Face's files have a config.json beside them that tells theirs. A changed model often keeps the word of the
    one that it was made from: heads that its width cannot have are not taken; what the report says of it is returned.
    """
    if candidate.layout.name.startswith("hf-") and candidate.architecture:
        _from_config(facts, candidate.architecture)
    if "timm" in (candidate.layout.name, *(layout.name for layout in candidate.same)) and candidate.architecture:
        _from_timm(facts, candidate.architecture)
    for layout in (candidate.layout, *candidate.same):
        for word in facts.archs:
            heads = layout.archs.get(word)
            if heads:
                made = candidate.architecture
                facts.depth = facts.depth or _depth(word, made)
                widths = (made.width, made.decoder_width) if made is not None else (0, 0)
                wrong = [bool(number and width % number) for number, width in zip(heads, widths, strict=True)]
                facts.heads = facts.heads or (None if wrong[0] else heads[0])
                facts.decoder_heads = facts.decoder_heads or (None if wrong[1] else heads[1])
                return [
                    f"the file says '{word}', but {number} heads do not divide its {part} of width {width}: not taken"
                    for number, width, part, not_so in zip(heads, widths, ("encoder", "decoder"), wrong, strict=True)
                    if not_so
                ]
    return []


def _depth(word: str, architecture: Architecture | None) -> int | None:
    """The blocks of the model that an architecture word means; None for one of another width."""
    size = next((size for size in SIZES if size in word), "")
    if architecture is None or not size or architecture.width != SIZES[size][0]:
        return None
    return SIZES[size][1] - ("conv" in word)  # the stem takes the place of a block


def from_recipe(recipe: Recipe, facts: Facts, architecture: Architecture) -> None:
    """Take the heads that a recipe says; UserError where the recipe is about another architecture."""
    encoder = recipe.model.encoder
    if isinstance(encoder, ViT) and architecture.family == "vit":
        if (encoder.width, encoder.depth) != (architecture.width, architecture.depth):
            raise UserError(
                f"recipe '{recipe.name}' has a ViT of width {encoder.width} and depth {encoder.depth}, "
                f"the file one of {architecture.width} and {architecture.depth}"
            )
        take(recipe, facts)


def take(recipe: Recipe, facts: Facts) -> None:
    """Take what a recipe says of heads and target."""
    encoder, objective = recipe.model.encoder, recipe.model.objective
    facts.recipe, facts.evaluate = recipe.name, recipe.evaluate
    if isinstance(encoder, ViT):
        facts.heads, facts.norm_eps, facts.grid = encoder.heads, encoder.norm_eps, grid(encoder)
    if isinstance(objective, MAE):
        facts.decoder_heads, facts.mask_ratio = objective.decoder_heads, objective.mask_ratio
        facts.normalised_pixels = objective.normalised_pixels


def asked(facts: Facts, how: Reading, architecture: Architecture | None) -> list[str]:
    """Take what the user says in the place of the file's own words; what differs from them, for the report."""
    recorded = (facts.heads, facts.norm_eps)
    if how.recipe is not None and architecture is not None:
        from_recipe(recipes.load(how.recipe) if isinstance(how.recipe, str) else how.recipe, facts, architecture)
    if how.norm_eps is not None and not 0 < how.norm_eps < 1:
        raise UserError(f"{how.norm_eps} cannot be the epsilon of a norm: it is a small number such as 1e-6")
    for word in ("heads", "decoder_heads", "norm_eps"):
        if getattr(how, word) is not None:
            setattr(facts, word, getattr(how, word))
    notes = []
    if recorded[0] and recorded[0] != facts.heads:
        notes.append(f"the file says {recorded[0]} heads, but {facts.heads} as was asked for are taken")
    if recorded[1] and recorded[1] != facts.norm_eps:
        notes.append(f"the file says norm epsilon {recorded[1]:g}, but {facts.norm_eps:g} as was asked for is taken")
    return notes


def arch_word(layout: Layout, architecture: Architecture, heads: int | None) -> str | None:
    """The word that a layout's own files would call this architecture; None where heads are unknown or differ, or a
    ResNet is none of torchvision's.
    """
    if architecture.family == "resnet":
        if architecture.depth == 10 or architecture.first_stage != 64:
            return None
        return f"resnet{architecture.depth}"
    size = next((size for size, (width, _) in SIZES.items() if width == architecture.width), "")
    stem = "conv_" if architecture.stem == "conv" else ""
    word = f"vit_{stem}{size}"
    asked: Heads | None = layout.archs.get(word)
    return word if asked and asked[0] == heads else None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a small JSON file; empty where there is none."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_TEXT:
            return {}
        return _parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _parse(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text, parse_constant=_refuse) if text and len(text) <= MAX_TEXT else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and not _deep(found, MAX_DEPTH) else {}


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _deep(tree: object, limit: int) -> bool:
    """Whether something is nested deeper than a limit."""
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return limit == 0 or any(_deep(part, limit - 1) for part in parts)


def _positive(value: object) -> float | None:
    """A small positive number; None for anything else."""
    return float(value) if isinstance(value, (int, float)) and 0 < value < 1 else None


def _number(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < MAX_NUMBER else None
