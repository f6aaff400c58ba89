"""How the images of a run are read: as the command line says, as the run did before, or as its encoder's were."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from triport.core.errors import UserError
from triport.core.options import TrainOptions
from triport.core.reading import Reading, differences, phrase, restored, restored_text
from triport.core.run.initial import find_file


def how_read(options: TrainOptions, known: Mapping[str, Any] | None) -> tuple[Reading, str]:
    """Return how images are read, as keywords of `open_dataset`, and a remark where that was not all said.

    known: the state of the run that goes on, None for a new one, which reads images as those of its encoder were read
    as far as nothing else is said. UserError where a run would go on with other pixels.
    """
    asked = options.reading
    if known is not None:
        return _as_before(asked, known, options.data_changed)
    own = {} if options.weights is None else reading_of(find_file(options.weights))
    changed = differences(own, {**own, **asked}) if own else []
    if changed:
        return {**own, **asked}, f"the encoder's images were read otherwise: {', '.join(changed)}"
    return {**own, **asked}, f"images are read with {phrase(own)}, as the encoder's were" if own else ""


def _as_before(asked: Reading, known: Mapping[str, Any], data_changed: bool) -> tuple[Reading, str]:
    if "reading" not in known:  # earlier versions did not keep it
        return asked, ""
    own = restored(known["reading"], "state.json")
    changed = differences(own, {**own, **asked})
    if changed and not data_changed:
        raise UserError(
            f"the run reads its images otherwise: {', '.join(changed)}. Leave that out to go on as before, "
            "or say --data-changed."
        )
    return {**own, **asked}, f"images are read with {', '.join(changed)}, as --data-changed says" if changed else ""


def reading_of(path: Path) -> Reading:
    """Return how the images of a file's model were read, as keywords of `open_dataset`; {} where it does not say."""
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    return restored_text(words(path).get("reading"), path)


def words(path: Path) -> dict[str, str]:
    """Return what the head of a safetensors file says."""
    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
