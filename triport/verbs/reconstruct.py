"""`triport reconstruct`: what a masked autoencoder makes of pictures of which it sees a part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from triport.core.errors import UserError
from triport.core.evaluate.reconstruction import Pictured, pictured
from triport.core.model import masking
from triport.core.model.inventory import grid
from triport.core.options import Parser, whole_number
from triport.core.record import page
from triport.core.spec import ViT
from triport.verbs import model, options, pictures
from triport.verbs.forward import Forward
from triport.verbs.model import Autoencoder, Target

MOST = 100  # pictures on a page


@dataclass(frozen=True)
class Reconstructions(Pictured):
    """Of n pictures, which see `Pictured`; mask (n, patches), 1 = hidden; prediction (n, patches, values) as the model
    gives it."""

    files: list[Path]
    mask: np.ndarray
    prediction: np.ndarray


def parser() -> Parser:
    """Return the command line's parser."""
    p = options.parser("reconstruct", "Show what a masked autoencoder makes of pictures of which it sees a part.")
    p.add_argument("images", nargs="+", metavar="IMAGES", help="pictures, folders, patterns such as 'photos/*.jpg'")
    p.add_argument("--page", required=True, type=Path, metavar="FILE.html", help="where the page goes")
    p.add_argument("--mask-ratio", type=float, metavar="R", help="share of patches that is hidden (the recipe's)")
    p.add_argument("--seed", type=whole_number, default=0, metavar="N", help="of the masks (0)")
    p.add_argument(
        "--target",
        choices=("pixels", "normalised"),
        help="what the decoder predicts, where a file does not say: pixels, or each patch's normalised ones",
    )
    return p


def main(argv: Sequence[str]) -> int:
    """Write the page; returns the exit code."""
    given = parser().parse_intermixed_args(list(argv))
    options.ending(given.page, (".html",), "--page")
    found = model.autoencoder(given.model, given.recipe, given.target)
    files = pictures.find(given.images)
    if len(files) > MOST:
        pictures.tell(f"the page shows the first {MOST} of {len(files)} pictures.")
    answer = of(found, files[:MOST], given.mask_ratio, given.seed, given.backend, given.device, given.batch)
    print(page.write(given.page, render(found, answer), "Name another file with --page."))
    return 0


def reconstruct(
    weights: str | Path,
    images: Sequence[str | Path],
    mask_ratio: float | None = None,
    seed: int = 0,
    *,
    target: Target | None = None,
    recipe: str | None = None,
    backend: str | None = None,
    device: str = "auto",
    batch: int = 64,
) -> Reconstructions:
    """Return reconstructions of pictures by a masked autoencoder: a run, or any file with encoder and decoder.

    mask_ratio: the recipe's by default. target: what the decoder predicts, for files that do not say it.
    """
    found = model.autoencoder(weights, recipe, target)
    return of(found, pictures.find(images), mask_ratio, seed, backend, device, batch)


def of(
    found: Autoencoder,
    files: Sequence[Path],
    mask_ratio: float | None,
    seed: int,
    backend: str | None = None,
    device: str = "auto",
    batch: int = 64,
) -> Reconstructions:
    """Return the reconstructions of files; the mask of a picture depends on the seed and its place alone."""
    encoder = found.recipe.model.encoder
    assert isinstance(encoder, ViT)
    patches = math.prod(grid(encoder))
    ratio = found.objective.mask_ratio if mask_ratio is None else mask_ratio
    if not 0 < ratio < 1 or not 0 < masking.visible_patches(patches, ratio) < patches:
        raise UserError(f"--mask-ratio {ratio:g} leaves none of {patches} patches hidden or visible: take 0.75.")
    spec = replace(found.recipe.model, objective=replace(found.objective, mask_ratio=ratio))
    readable, images = pictures.read_files(found.recipe, files)
    given = pictures.normalised(found.recipe, images)
    noise = masking.noise(seed, 0, range(len(given)), patches)
    forward = Forward(spec, found.arrays, backend, device)
    predictions, masks = [], []
    for at in range(0, len(given), batch):
        answer = forward({"images": given[at : at + batch], "mask_noise": noise[at : at + batch]})
        predictions.append(answer["prediction"])
        masks.append(answer["mask"])
    prediction, mask = np.concatenate(predictions), np.concatenate(masks)
    made = pictured(found.recipe.model, found.recipe.evaluate, given, prediction, mask)
    return Reconstructions(files=readable, mask=mask, prediction=prediction, **vars(made))


# ---------------------------------------------------------------- the page
def render(found: Autoencoder, answer: Reconstructions) -> str:
    """Return the page as HTML that needs no other file."""
    parts = []
    titles = ("visible patches", "reconstruction", "visible patches pasted in", "original")
    for row, file in enumerate(answer.files):
        drawn = (answer.masked[row], answer.reconstruction[row], answer.pasted[row], answer.original[row])
        cells = [page.picture(image, title) for image, title in zip(drawn, titles)]
        note = f"{file.name}: mean squared error over hidden patches {answer.losses[row]:.4f}"
        parts.append(f'{page.caption(note)}<div class="sheet four">{"".join(cells)}</div>')
    hidden = int(answer.mask[0].sum())
    verdict = f"{hidden} of {answer.mask.shape[1]} patches are hidden; mean error {answer.losses.mean():.4f}"
    remark = (
        "The decoder predicts each patch's pixels normalised by the patch's own mean and variance. Those are taken "
        "from the original to show the reconstruction, so its brightness and contrast are not the model's own work."
        if found.objective.normalised_pixels
        else "The decoder predicts pixels, which are shown as they are."
    )
    head = page.header("Reconstructions", "good", verdict, [f"Model: {found.origin}", remark])
    return page.document("Reconstructions", [head, *parts])
