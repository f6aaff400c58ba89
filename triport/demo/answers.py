"""What the demo's networks answer, in the interpreter of their framework: `python -m triport.demo.answers FOLDER …`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from triport import api
from triport.core.run.subject import find_subject
from triport.core.spec import recipe
from triport.demo import moved
from triport.demo.scores import ANSWERS
from triport.verbs import reconstruct

BATCH = 256


def main(words: Sequence[str]) -> int:
    """Write answers.npz in a demo's FOLDER: features of all pictures by the network of RUN, and MAE's pictures.

    words: FOLDER, BACKEND, RUN (a folder in it), and the run of MAE. The file holds `trained` and `untrained`,
    (training pictures and then those of every change, width), and `masked`, `reconstruction`, `pasted` and `original`,
    uint8 (n, height, width, channels), of the pictures in FOLDER/pictures.
    """
    folder, backend = Path(words[0]), words[1]
    run, mae = (folder / word for word in words[2:4])
    chosen = recipe.load(str(run / "recipe.toml"))
    shown = moved.load(chosen)
    images = np.concatenate([shown.train.pixels, *(test.pixels for test in shown.tests.values())])
    trained, untrained = (
        api.ask(subject, "embed", list(images), backend, "cpu", BATCH)
        for subject in (
            find_subject(str(run / "encoder.safetensors"), features_only=True),
            find_subject(str(run / "recipe.toml"), from_scratch=True, features_only=True),
        )
    )
    files = sorted((folder / "pictures").glob("*.png"))
    made = reconstruct.reconstruct(mae, files, backend=backend, device="cpu")
    with (folder / ANSWERS).open("wb") as file:
        np.savez(
            file,
            trained=trained,
            untrained=untrained,
            masked=made.masked,
            reconstruction=made.reconstruction,
            pasted=made.pasted,
            original=made.original,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
