"""`triport attention`: where the class token looks, per head and through all blocks, and patch features as colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from triport.core.errors import UserError
from triport.core.model.inventory import grid, inventory
from triport.core.options import Parser
from triport.core.record import page
from triport.core.run.subject import Subject
from triport.core.selection import EVERYTHING, Selection, selected
from triport.core.spec import Classifier, ModelSpec, Pair, ViT
from triport.verbs import model, options, pictures
from triport.verbs.forward import Forward

MOST = 50  # pictures on a page
AT_ONCE = 8  # pictures of which all layers are in memory
EDGES = (1.0, 99.0)  # percentiles of a component that become black and white


@dataclass(frozen=True)
class Attention:
    """Of n pictures, by a ViT with rows x columns patches.

    heads: (n, heads, 1 + patches), what the class token of the last block takes from each token, itself first; a row
    sums to 1. rollout: the same (n, 1 + patches) through all blocks, heads averaged (arXiv 2005.00928). colours:
    (n, rows, columns, 3) from 0 to 1, the first three principal components of patch features over all n pictures.
    """

    files: list[Path]
    images: np.ndarray
    heads: np.ndarray
    rollout: np.ndarray
    features: np.ndarray  # (n, patches, width), after the last norm
    colours: np.ndarray
    sides: Pair


def parser() -> Parser:
    """Return the command line's parser."""
    p = options.parser("attention", "Show where a ViT's class token looks, and its patch features as colours.")
    p.add_argument("images", nargs="+", metavar="IMAGES", help="pictures, folders, patterns such as 'photos/*.jpg'")
    p.add_argument("--page", required=True, type=Path, metavar="FILE.html", help="where the page goes")
    return p


def main(argv: Sequence[str]) -> int:
    """Write the page; returns the exit code."""
    given = parser().parse_intermixed_args(list(argv))
    options.ending(given.page, (".html",), "--page")
    found = model.subject(given.model, given.recipe, selection=selected(given))
    files = pictures.find(given.images)
    if len(files) > MOST:
        pictures.tell(f"the page shows the first {MOST} of {len(files)} pictures.")
    answer = of(found, files[:MOST], given.backend, given.device, min(given.batch, AT_ONCE))
    print(page.write(given.page, render(found, answer), "Name another file with --page."))
    return 0


def attention(
    weights: str | Path,
    images: Sequence[str | Path],
    *,
    recipe: str | None = None,
    selection: Selection = EVERYTHING,
    backend: str | None = None,
    device: str = "auto",
) -> Attention:
    """Return attention maps and patch features of pictures by a ViT of either method; UserError for a ResNet."""
    return of(model.subject(weights, recipe, selection=selection), pictures.find(images), backend, device)


def of(
    found: Subject, files: Sequence[Path], backend: str | None = None, device: str = "auto", batch: int = AT_ONCE
) -> Attention:
    """Return the attention of files, and colours that one principal component analysis over all of them gives."""
    encoder = found.recipe.model.encoder
    if not isinstance(encoder, ViT):
        raise UserError(f"{found.origin} is a ResNet, which has no attention: name a ViT.")
    readable, images = pictures.read_files(found.recipe, files, found.reading)
    spec, arrays, norm = averaging(found)
    forward = Forward(spec, arrays, backend, device)
    names = [f"blocks.{block}.attn.qkv" for block in range(encoder.depth)]
    last = f"blocks.{encoder.depth - 1}"
    heads, rollouts, features = [], [], []
    for at in range(0, len(images), batch):
        given = pictures.normalised(found.recipe, images[at : at + batch])
        seen = forward({"images": given}, [*names, last])
        weights = [attended(seen[name], encoder.heads) for name in names]
        heads.append(weights[-1][:, :, 0])
        rollouts.append(rollout(weights)[:, 0])
        features.append(layer_norm(seen[last][:, 1:], *norm, encoder.norm_eps))
    patches = np.concatenate(features)
    sides = grid(encoder)
    colours = components(patches).reshape(len(patches), *sides, 3)
    return Attention(readable, images, np.concatenate(heads), np.concatenate(rollouts), patches, colours, sides)


def averaging(found: Subject) -> tuple[ModelSpec, dict[str, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return the encoder as a model that averages patches, its arrays, and the last norm's weight and bias.

    Where only the class token leaves, backends compute it alone in the last block; averaging makes them compute all.
    """
    head = Classifier(classes=2, pooling="mean", head_std=0.01)
    spec = replace(found.recipe.model, objective=head)
    norm = "norm" if "norm.weight" in found.arrays else "fc_norm"
    weight, bias = found.arrays[f"{norm}.weight"], found.arrays[f"{norm}.bias"]
    own = {**found.arrays, "fc_norm.weight": weight, "fc_norm.bias": bias}
    arrays = {}
    for p in inventory(spec):
        is_head = p.name.startswith("head.")
        arrays[p.name] = np.zeros(p.shape, np.float32) if is_head else own[p.name]
    return spec, arrays, (weight, bias)


def attended(qkv: np.ndarray, heads: int) -> np.ndarray:
    """Softmax of the scaled scores, float64 (n, heads, tokens, tokens), of a fused projection (n, tokens, 3 width)."""
    n, tokens, width = qkv.shape
    parts = np.asarray(qkv, np.float64).reshape(n, tokens, 3, heads, width // (3 * heads))
    query, key = parts[:, :, 0].transpose(0, 2, 1, 3), parts[:, :, 1].transpose(0, 2, 3, 1)
    scores = query @ key / np.sqrt(query.shape[-1])
    share = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(share / share.sum(axis=-1, keepdims=True))


def rollout(weights: Sequence[np.ndarray]) -> np.ndarray:
    """Attention through all blocks (n, tokens, tokens): products of (A + I) / 2, A a block's mean over its heads."""
    tokens = weights[0].shape[-1]
    total = np.eye(tokens)[None]
    for block in weights:
        total = (block.mean(axis=1) + np.eye(tokens)) / 2 @ total
    return total


def layer_norm(rows: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """Layer norm over the last axis, float64."""
    wide = np.asarray(rows, np.float64)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    return np.asarray(centred / np.sqrt(wide.var(axis=-1, keepdims=True) + eps) * weight + bias)


def components(patches: np.ndarray) -> np.ndarray:
    """The first three principal components of (n, patches, width) as (n, patches, 3), from 0 to 1 between EDGES."""
    rows = patches.reshape(-1, patches.shape[-1])
    rows = rows - rows.mean(axis=0)
    _, vectors = np.linalg.eigh(rows.T @ rows)
    main = vectors[:, ::-1][:, :3]
    main = main * np.sign(main[np.abs(main).argmax(axis=0), np.arange(main.shape[1])])  # the same signs everywhere
    found = rows @ main
    low, high = np.percentile(found, EDGES, axis=0)
    return np.clip((found - low) / np.maximum(high - low, 1e-12), 0, 1).reshape(*patches.shape[:2], 3)


# ---------------------------------------------------------------- the page
def render(found: Subject, answer: Attention) -> str:
    """Return the page as HTML that needs no other file."""
    parts = []
    for row, file in enumerate(answer.files):
        image = answer.images[row]
        colours = np.rint(255 * answer.colours[row]).astype(np.uint8)
        cells = [page.picture(image, "picture", "query"), page.picture(enlarged(colours, image), "patch features")]
        cells.append(page.picture(heat(answer.rollout[row, 1:], answer.sides, image), "rollout"))
        for number, head in enumerate(answer.heads[row], 1):
            cells.append(page.picture(heat(head[1:], answer.sides, image), f"head {number}"))
        parts.append(f'{page.caption(file.name)}<div class="sheet">{"".join(cells)}</div>')
    count = answer.heads.shape[1]
    verdict = (
        f"{len(answer.files)} pictures, {count} heads of the last block, {answer.sides[0]} x {answer.sides[1]} patches"
    )
    facts = [
        f"Model: {found.origin}",
        "Heads: how much of each patch the class token takes in the last block; brightest is the head's largest share. "
        "Rollout: the same through all blocks. Patch features: their first three principal components over all "
        "pictures here, as red, green and blue; patches of like colour have like features.",
    ]
    return page.document("Attention", [page.header("Attention", "good", verdict, facts), *parts])


def enlarged(colours: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Colours (rows, columns, channels) of patches at the size of the picture."""
    down, across = image.shape[0] // colours.shape[0], image.shape[1] // colours.shape[1]
    return colours.repeat(max(down, 1), axis=0).repeat(max(across, 1), axis=1)


def heat(shares: np.ndarray, sides: Pair, image: np.ndarray) -> np.ndarray:
    """Shares (patches,) as brightness over the picture, whose largest is white-hot: uint8 (height, width, 3)."""
    level = shares.reshape(sides) / max(float(shares.max()), 1e-12)
    ramp = np.stack([np.clip(3 * level - part, 0, 1) for part in range(3)], axis=-1)
    return enlarged(np.rint(255 * ramp).astype(np.uint8), image)
