"""Pictures that a user names: files, folders, globs; read side by side, prepared as a recipe evaluates them."""

from __future__ import annotations

import contextlib
import glob
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from triport.api import ImageLike, prepared_one
from triport.core.augment import pixels
from triport.core.data.readers.tree import is_image
from triport.core.data.sample.decode import BrokenImage
from triport.core.errors import UserError
from triport.core.reading import Reading
from triport.core.record.console import Console, show
from triport.core.spec import Recipe


def find(words: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the pictures that these words mean, in their order, each once: files, folders with all below, globs."""
    words = [words] if isinstance(words, (str, Path)) else words
    if not len(words):
        raise UserError("no picture was named: name files, folders or a pattern such as 'photos/*.jpg'.")
    found: dict[Path, None] = {}
    for word in words:
        path = Path(word).expanduser()
        if path.is_dir():
            files = below(path)
            if not files:
                raise UserError(f"folder '{path}' has no picture in it.")
        elif path.exists():
            files = [path]
        else:
            names = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 a pattern may be absolute
            files = [Path(name) for name in names if Path(name).is_file()]
            if not files:
                raise UserError(f"no picture '{word}': name files, folders or a pattern such as 'photos/*.jpg'.")
        found.update(dict.fromkeys(files))
    return list(found)


def below(folder: Path) -> list[Path]:
    """Return every picture in and below a folder, sorted; what is hidden is left out."""
    found = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        if is_image(path.name) and path.is_file() and not any(part.startswith(".") for part in inside):
            found.append(path)
    return found


Read = Callable[[int], ImageLike]


def batches(
    recipe: Recipe, names: Sequence[str], read: Read, batch: int = 64, reading: Reading | None = None
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield indices and pictures uint8 (n, height, width, channels) as the recipe evaluates, `batch` at a time.

    names: of the pictures, for what is told of those that cannot be read, which are left out. UserError where none can.
    reading: how files are read, as keywords of `open_dataset`.
    """
    channels, found_any = recipe.model.encoder.channels, False

    def prepared(index: int) -> np.ndarray | str:
        try:
            return prepared_one(recipe, read(index), channels, reading)
        except BrokenImage as error:
            return str(error)
        except UserError as error:
            return f"{names[index]}: {error}"

    with ThreadPoolExecutor(cores()) as pool, progress(len(names)) as bar:
        for start in range(0, len(names), batch):
            indices = range(start, min(start + batch, len(names)))
            found = dict(zip(indices, pool.map(prepared, indices)))
            for wrong in (text for text in found.values() if isinstance(text, str)):
                bar.say(f"triport: left out: {wrong}")
            bar.progress(indices.stop, f"triport: {indices.stop:,} of {len(names):,} pictures")
            readable = {index: rows for index, rows in found.items() if not isinstance(rows, str)}
            if readable:
                found_any = True
                yield list(readable), np.stack(list(readable.values()))
    if not found_any:
        raise UserError(f"none of {len(names)} pictures can be read{f', the first is {names[0]}' if names else ''}.")


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_files(recipe: Recipe, files: Sequence[Path], reading: Reading | None = None) -> tuple[list[Path], np.ndarray]:
    """Return the files that can be read and their pictures uint8 (n, height, width, channels); others are told of.

    UserError where none can be read.
    """
    warn_of_grey(recipe, files)
    parts = list(batches(recipe, list(map(str, files)), files.__getitem__, reading=reading))
    return [files[index] for readable, _ in parts for index in readable], np.concatenate([rows for _, rows in parts])


def warn_of_grey(recipe: Recipe, files: Sequence[Path]) -> None:
    """Say so where a model of one channel is shown a colour picture; the first files are looked at."""
    if recipe.model.encoder.channels != 1:
        return
    for file in files[:16]:
        with contextlib.suppress(OSError, ValueError), Image.open(file) as picture:
            if picture.mode not in ("1", "L", "LA", "I", "I;16", "F"):
                tell(f"the model has one channel: colour pictures such as {file} are shown to it as grey.")
                return


@contextlib.contextmanager
def progress(total: int) -> Iterator[Console]:
    """Within, a bar on a terminal's standard error, elsewhere a line every ten seconds, for work of `total` parts."""
    bar = Console(total, stream=sys.stderr)
    try:
        yield bar
    finally:
        bar.close()


def tell(text: str) -> None:
    """Say something that does not stop the work."""
    show(f"triport: {text}", sys.stderr)


def normalised(recipe: Recipe, images: np.ndarray) -> np.ndarray:
    """Return uint8 (n, height, width, channels) as the model takes it: float32 (n, channels, height, width)."""
    return np.asarray(pixels.normalise(images, recipe.evaluate.mean, recipe.evaluate.std))
