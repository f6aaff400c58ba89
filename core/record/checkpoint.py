"""A run's checkpoints: safetensors files and a state, written whole or not at all, checked when read.

A checkpoint is a folder: one safetensors file per group of arrays and `state.json`, which holds the SHA-256 of every
file and of itself. It is written beside its place as `<name>.part`, brought to the disk, and only then renamed to
`<name>.new`; the old folder steps aside as `<name>.old` and the new one takes its place. Whenever the machine stops,
one of `<name>.new`, `<name>`, `<name>.old` is whole, and that is the order in which `find` looks.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from triport.core import atomic
from triport.core.errors import UserError

FORMAT = 1
PLAIN = re.compile(r"\w+\.safetensors")  # files of a checkpoint: nothing outside its folder
State = dict[str, Any]
Arrays = dict[str, dict[str, np.ndarray]]


# ---------------------------------------------------------------- writing
def save(folder: Path, arrays: Mapping[str, Mapping[str, np.ndarray]], state: State) -> None:
    """Write `arrays` (file stem -> name -> array) and `state` (JSON values) as the checkpoint `folder`.

    A checkpoint of that name is replaced; if anything fails it stays as it was and a UserError says why.
    """

    def fill(part: Path) -> None:
        words = class_words(state)
        for stem, group in arrays.items():
            write_arrays(part / f"{stem}.safetensors", group, words if stem == "model" else None)

    _write(folder, fill, state)


def restate(folder: Path, state: State) -> None:
    """Give the checkpoint `folder` another state; its arrays are neither read nor written again."""
    copy(folder, folder, state)


def copy(source: Path, folder: Path, state: State | None = None) -> None:
    """Make the checkpoint `folder` from `source`, sharing its files where the disk can, with another state if given."""
    settle(source)

    def fill(part: Path) -> None:
        for path in source.glob("*.safetensors"):
            atomic.share(path, part / path.name)

    known = read_state(source)
    _write(folder, fill, known if state is None else state, known["checksums"])


def _write(folder: Path, fill: Callable[[Path], None], state: State, checksums: dict[str, str] | None = None) -> None:
    part = folder.with_name(folder.name + ".part")
    try:
        settle(folder)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        fill(part)
        if checksums is None:
            checksums = {path.name: digest(path) for path in sorted(part.glob("*.safetensors"))}
        (part / "state.json").write_text(_sealed({"format": FORMAT, **state, "checksums": checksums}), encoding="utf-8")
        for path in part.iterdir():
            atomic.settle(path)
        atomic.settle(part)
        _swing(part, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot write the checkpoint {folder}: {reason}"
            + (
                "; the checkpoint that was there is intact. Free space or make the folder writable, "
                "then go on with --resume."
                if exists(folder) or listed(folder.parent)
                else ". Free space or make the folder writable, then begin again with --overwrite."
            )
        ) from error


def _swing(part: Path, folder: Path) -> None:
    """Put the finished `part` in the place of `folder`; see the file's docstring for what a crash leaves."""
    part.replace(folder.with_name(folder.name + ".new"))
    settle(folder)


def settle(folder: Path) -> None:
    """Finish what replacing the checkpoint `folder` left to do, also after a crash. Only one process may do this."""
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    if new.exists():
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.replace(old)
        new.replace(folder)
        atomic.settle(folder.parent)
    elif old.exists() and not folder.exists():
        old.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def tidy(run: Path) -> None:
    """Finish what a kill interrupted in a run's checkpoints and remove its leftovers. Only the run's one writer may."""
    for name in {
        path.name.rpartition(".")[0] for end in ("new", "old") for path in (run / "checkpoints").glob(f"*.{end}")
    }:
        settle(run / "checkpoints" / name)
    for part in (run / "checkpoints").glob("*.part"):
        shutil.rmtree(part, ignore_errors=True)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], words: dict[str, str] | None = None) -> None:
    """Write a safetensors file, with `words` in its head, that others may read as any file that is made here."""
    path.touch()
    mode = path.stat().st_mode
    save_file({name: _plain(array) for name, array in arrays.items()}, path, words)
    path.chmod(mode)  # safetensors makes files that only their owner can read
    if words and len(words) > 1:
        _sort_words(path)


def class_words(state: Mapping[str, Any]) -> dict[str, str]:
    """Return what a file's head says of a model's images: fingerprint, class names, how they were read."""
    words = {"data": str(state["data"])} if "data" in state else {}
    words |= {"reading": json.dumps(state["reading"])} if state.get("reading") else {}
    return {**words, "classes": json.dumps(state["classes"])} if state.get("classes") else words


def _sort_words(path: Path) -> None:
    """Put the words in the head of a safetensors file into order, which the library leaves to chance.

    Files of equal content are then equal byte for byte.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        head = json.loads(file.read(length))
        words = dict(sorted(head.pop("__metadata__").items()))
        text = json.dumps({"__metadata__": words, **head}, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) > length:
            raise OSError(f"the head of {path} grew while it was sorted")
        file.seek(8)
        file.write(text.ljust(length))


def _plain(array: np.ndarray) -> np.ndarray:
    """Return a contiguous array that safetensors writes; bfloat16 becomes float32, which holds it exactly."""
    array = np.asarray(array)
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    # Not np.ascontiguousarray: that gives a scalar a dimension.
    return array if array.flags.c_contiguous else array.copy(order="C")


def _sealed(state: State) -> str:
    return json.dumps({**state, "seal": _seal(state)}, indent=1)


def _seal(state: State) -> str:
    text = json.dumps({key: value for key, value in state.items() if key != "seal"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


# ---------------------------------------------------------------- reading
def find(folder: Path) -> Path:
    """Return where the checkpoint `folder` stands: itself, or what a crash in the middle of replacing it left."""
    for name in (folder.name + ".new", folder.name, folder.name + ".old"):
        if (folder.parent / name / "state.json").is_file():
            return folder.parent / name
    return folder


def exists(folder: Path) -> bool:
    """Say whether there is a checkpoint of that name."""
    return (find(folder) / "state.json").is_file()


def read_state(folder: Path) -> State:
    """Return the state of a checkpoint, without its arrays."""
    path = find(folder) / "state.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder} is not a checkpoint: it has no state.json. Name a run folder or one of its checkpoints."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(_damaged(path, f"cannot be read ({type(error).__name__})")) from error
    if not isinstance(state, dict) or "checksums" not in state:
        raise UserError(_damaged(path, "is not the state of a checkpoint"))
    if state.get("format") != FORMAT or isinstance(state.get("format"), bool):
        raise UserError(
            f"{path} has format {state.get('format')}, this version reads {FORMAT}. Use the version that wrote it."
        )
    if state.get("seal") != _seal(state):
        raise UserError(_damaged(path, "was changed after it was written"))
    names = state["checksums"]
    if not isinstance(names, dict) or not all(isinstance(n, str) and PLAIN.fullmatch(n) for n in names):
        raise UserError(_damaged(path, "names files that are not a checkpoint's"))
    return state


def load(folder: Path) -> tuple[Arrays, State]:
    """Read a checkpoint and hold every file against its checksum."""
    folder = find(folder)
    state = read_state(folder)
    arrays = {}
    for name, wanted in state["checksums"].items():
        path = folder / name
        if not path.is_file():
            raise UserError(_damaged(path, "is missing"))
        try:
            if digest(path) != wanted:
                raise UserError(_damaged(path, "is damaged: its checksum differs from the one in state.json"))
            arrays[path.stem] = load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(_damaged(path, f"cannot be read ({error})")) from error
    return arrays, state


def _damaged(path: Path, fault: str) -> str:
    """One line that names the file, the fault and the checkpoints to go on from instead."""
    own = path.parent
    others = [str(other) for other in reversed(listed(own.parent)) if other != own]
    rest = (
        f"go on with --resume {others[0]}"
        if others
        else "no other checkpoint is there; begin a new run with --overwrite"
    )
    return f"{path} {fault}; {rest}."


def listed(checkpoints: Path) -> list[Path]:
    """Return a run's checkpoints, oldest first: epoch_N in order, then last. `best` is not one to go on from."""
    found = [path for path in checkpoints.glob("epoch_*") if path.name[6:].isdigit() and exists(path)]
    last = checkpoints / "last"
    return sorted(found, key=lambda path: int(path.name[6:])) + ([find(last)] if exists(last) else [])


def latest(run: Path) -> Path:
    """Return the checkpoint to go on from: `run` may be a run folder or itself a checkpoint."""
    if exists(run):
        return find(run)
    found = listed(run / "checkpoints") or listed(run)
    if not found:
        if run.exists():
            raise UserError(f"cannot resume from {run}: it holds no checkpoint yet. Begin a new run with --overwrite.")
        raise UserError(f"cannot resume from {run}: there is no such folder. Leave out --resume to begin a run.")
    return found[-1]


def prune(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` epoch_N checkpoints of a run folder; `last` and `best` stay."""
    epochs = [path for path in listed(run / "checkpoints") if path.name.startswith("epoch_")]
    for path in epochs[: max(len(epochs) - max(keep, 0), 0)]:
        # Renamed first, so that a crash in the middle never leaves half a checkpoint under a good name.
        doomed = path.with_name(path.name + ".part")
        shutil.rmtree(doomed, ignore_errors=True)
        path.replace(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
