"""`triport neighbours`: pictures beside those most like them, on a contact sheet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from triport.core.augment.pixels import as_array
from triport.core.data.datasets import Dataset
from triport.core.data.readers.image_files import read_image
from triport.core.data.sample.decode import Decoding
from triport.core.errors import UserError
from triport.core.evaluate.monitors import neighbours as nearest
from triport.core.options import Parser, positive_number
from triport.core.record import page
from triport.core.run.subject import Subject
from triport.core.selection import EVERYTHING, Selection, selected
from triport.verbs import embed, model, options, pictures

MOST = 200  # queries that a page shows
SIDE = 112  # pixels of a picture on the page


@dataclass(frozen=True)
class Neighbours:
    """Of each query the places of its nearest pictures (n, k), falling in cosine similarity (n, k), and all names."""

    queries: list[str]
    among: embed.Features
    places: np.ndarray
    similarities: np.ndarray


def parser() -> Parser:
    """Return the command line's parser."""
    p = options.parser("neighbours", "Show pictures beside those most like them, by the cosine of their features.")
    p.add_argument("images", nargs="+", metavar="IMAGES", help="pictures, folders, patterns such as 'photos/*.jpg'")
    p.add_argument(
        "--among", required=True, metavar="DATA_OR_FEATURES", help="a data set, a folder, or a file that embed wrote"
    )
    p.add_argument("--k", type=positive_number, default=8, metavar="K", help="neighbours of each picture (8)")
    p.add_argument("--page", required=True, type=Path, metavar="FILE.html", help="where the contact sheet goes")
    return p


def main(argv: Sequence[str]) -> int:
    """Write the contact sheet; returns the exit code."""
    given = parser().parse_intermixed_args(list(argv))
    options.ending(given.page, (".html",), "--page")
    found = model.subject(given.model, given.recipe, selection=selected(given))
    answer = of(found, given.images, given.among, given.k, given.backend, given.device, given.batch)
    if len(answer.queries) > MOST:
        pictures.tell(f"the page shows the first {MOST} of {len(answer.queries)} pictures.")
    print(page.write(given.page, render(found, answer, given.among), "Name another file with --page."))
    return 0


def neighbours(
    weights: str | Path,
    images: Sequence[str | Path],
    among: str | Path,
    k: int = 8,
    *,
    recipe: str | None = None,
    selection: Selection = EVERYTHING,
    backend: str | None = None,
    device: str = "auto",
    batch: int = 64,
) -> Neighbours:
    """Return the `k` pictures of `among` (a data set or a file of features) most like each picture."""
    return of(model.subject(weights, recipe, selection=selection), images, among, k, backend, device, batch)


def of(
    found: Subject,
    images: Sequence[str | Path],
    among: str | Path,
    k: int,
    backend: str | None = None,
    device: str = "auto",
    batch: int = 64,
) -> Neighbours:
    """Return the neighbours of pictures; one that is among the others itself is not its own neighbour."""
    known = written(among)
    if known is None:
        known = embed.of(found, [among], "all", backend, device, batch)
    elif known.model != model.digest(found):
        raise UserError(f"{among} holds features of another model ({known.origin}): embed with {found.origin}.")
    files = embed.Files(found.recipe, pictures.find(images), found.reading)
    asked = embed.of_parts(found, [("all", files)], [], backend, device, batch)
    own = {str(Path(file).resolve()): place for place, file in enumerate(known.files)}
    count = min(k + 1, len(known.files))
    similar, places = nearest(known.rows, np.arange(len(known.files)), asked.rows, count)
    self_at = np.array([own.get(str(Path(file).resolve()), -1) for file in asked.files])
    order = np.argsort(places == self_at[:, None], axis=1, kind="stable")[:, : min(k, len(known.files))]
    if (self_at >= 0).any():
        order = order[:, : max(1, min(k, len(known.files) - 1))]
    take = np.take_along_axis
    return Neighbours(asked.files, known, take(places, order, 1), take(similar, order, 1))


def written(among: str | Path) -> embed.Features | None:
    """Return the features of a file that embed wrote; None for a data set, also one in .npz or parquet."""
    path = Path(among)
    if path.suffix not in embed.FORMS or not path.is_file():
        return None
    try:
        return embed.read(path)
    except UserError:
        return None


# ---------------------------------------------------------------- the page
def render(found: Subject, answer: Neighbours, among: str | Path) -> str:
    """Return the contact sheet as HTML that needs no other file."""
    from_files = reader(found, answer.among, among)
    parts = []
    for row, file in enumerate(answer.queries[:MOST]):
        query = small(read_image(file, Decoding(found.recipe.model.encoder.channels, **found.reading)))
        cells = [page.picture(query, Path(file).name, "query")]
        for place, similarity in zip(answer.places[row], answer.similarities[row]):
            name, label = answer.among.files[place], answer.among.labels[place]
            caption = f"{similarity:.3f}  {answer.among.classes[label] if label >= 0 else Path(name).name}"
            cells.append(page.picture(small(from_files(int(place))), caption))
        parts.append(f'<div class="sheet">{"".join(cells)}</div>')
    k = answer.places.shape[1]
    verdict = f"{len(answer.queries)} pictures, each beside its {k} nearest of {len(answer.among.files)}"
    facts = [f"Model: {found.origin}", f"Among: {among}", "Numbers are cosines of features; 1 is the same direction."]
    return page.document("Neighbours", [page.header("Neighbours", "good", verdict, facts), *parts])


def reader(found: Subject, among: embed.Features, where: str | Path) -> Callable[[int], np.ndarray]:
    """Return what gives picture `place` again: from its file, or from the data set that it is in."""
    channels = found.recipe.model.encoder.channels
    parts: list[Dataset] = []
    index: dict[str, tuple[Dataset, int]] = {}

    def picture(place: int) -> np.ndarray:
        name = among.files[place]
        if Path(name).is_file():
            return as_array(read_image(name, Decoding(channels, **found.reading)))
        if not parts and written(where) is None:
            parts.extend(part for _, part in embed.sources(found, [where], "all")[0])
            index.update({embed.where(part, i): (part, i) for part in parts for i in range(len(part))})
        if name not in index:
            return np.full((SIDE, SIDE, channels), 128, np.uint8)  # gone since its features were made
        part, at = index[name]
        return as_array(part.image(at))

    return picture


def small(image: Image.Image | np.ndarray) -> np.ndarray:
    """Return a picture cut to a square in its middle, at most SIDE pixels wide: uint8 (height, width, channels)."""
    array = as_array(image)
    side = min(array.shape[:2])
    top, left = (array.shape[0] - side) // 2, (array.shape[1] - side) // 2
    step = max(1, side // (2 * SIDE))  # a rough cut before Pillow's filter would cost more than it brings
    square = array[top : top + side : step, left : left + side : step, :3]
    if square.shape[2] == 2:
        square = square[..., :1]
    if square.shape[0] <= SIDE:
        return np.ascontiguousarray(square)
    made = Image.fromarray(np.ascontiguousarray(square.squeeze(2) if square.shape[2] == 1 else square))
    shrunk = np.asarray(made.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    return shrunk if shrunk.ndim == 3 else shrunk[..., None]
