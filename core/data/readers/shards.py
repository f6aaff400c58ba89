"""WebDataset shards: .tar files whose samples are read at random by their offsets, from an index made once."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from triport.core.data.readers import tar_headers
from triport.core.data.readers.splits import NAMES, ORDER, meaning, word_in
from triport.core.data.readers.tree import is_image
from triport.core.data.sample.decode import BrokenImage, Decoding, Source, decode
from triport.core.data.sample.labels import Labels, unlabelled, worded
from triport.core.data.sample.samples import Samples
from triport.core.errors import UserError

LABELS = ("cls", "class", "label", "cls.txt", "json")  # members that may hold a sample's label, the first that is there
NAMES_FILE = "classnames.txt"  # beside the shards: a class name a line
OPEN = 64  # shards that a process keeps open


class ShardDataset(Samples):
    """Images at offsets in .tar files."""

    def __init__(
        self, name: str, shards: list[Path], index: Index, labels: Labels, decoding: Decoding, remarks: Sequence[str]
    ) -> None:
        super().__init__(name, labels, decoding, remarks)
        self.shards, self.index = [str(shard) for shard in shards], index
        self._files: dict[int, int] = {}  # shard -> descriptor, in this process

    def where(self, index: int) -> str:
        """Return the shard and the byte where image `index` begins."""
        return f"{self.shards[self.index.shard[index]]}@{self.index.offset[index]}"

    def image(self, index: int) -> Source:
        """Return image `index`. Raises BrokenImage."""
        size, where = int(self.index.size[index]), self.where(index)
        try:
            data = os.pread(self._descriptor(int(self.index.shard[index])), size, int(self.index.offset[index]))
        except OSError as error:
            raise BrokenImage(f"{where}: {error.strerror or error}") from None
        if len(data) < size:
            raise BrokenImage(f"{where}: the shard is cut short")
        return decode(data, where, self.decoding)

    def _descriptor(self, shard: int) -> int:
        if shard not in self._files:
            if len(self._files) >= OPEN:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[shard] = os.open(self.shards[shard], os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        return self._files[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_files", {}).values():
            os.close(descriptor)


@dataclass
class Index:
    """Where each image lies, and its label as text, "" for none; a few bytes a sample."""

    shard: np.ndarray  # int32
    offset: np.ndarray  # int64
    size: np.ndarray  # int64
    label: np.ndarray  # int32, a place in `words`
    words: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def read_shards(path: Path, split: str, decoding: Decoding) -> ShardDataset:
    """Read WebDataset shards: one .tar, or a folder of them, in it or in folders named after the splits.

    A sample is what shares a name up to the first dot; its image is the first member with a plain image's ending (jpg
    before depth.png), further ones are left out with a remark. Its label is
    `cls` (a number or a word), or "label" or "cls" in its `json`. Shards are sorted by name; where a word of the names
    is a split's (train-0001.tar), so is the shard. The index is kept in the user's cache and made again when a shard
    changes.
    """
    shards = find(path, split, ".tar")
    index = _indexed(shards)
    if not len(index.offset):
        raise UserError(f"'{path}' holds .tar files without an image (looked at {len(shards)})")
    names = (path if path.is_dir() else path.parent) / NAMES_FILE
    classes = names.read_text("utf-8", "replace").split("\n") if names.is_file() else []
    labels = _labels(str(path), index, [line.strip() for line in classes if line.strip()])
    return ShardDataset(f"{path.name} {split}", shards, index, labels, decoding, index.remarks)


def find(path: Path, split: str, ending: str) -> list[Path]:
    """Return the files with an ending that are of a split: by the folder they lie in, or by a word of their names.

    Where no name says a split, all files are of each.
    """
    if path.is_file():
        return [path]
    folders = {item.name: item for item in sorted(path.iterdir()) if item.is_dir() and meaning(item.name)}
    parted: dict[str, list[Path]] = {}
    for item in sorted([*path.glob(f"*{ending}"), *path.glob(f"data/*{ending}")]):
        parted.setdefault(word_in(item.name) or "", []).append(item)
    for name, folder in folders.items():
        if files := sorted(folder.glob(f"*{ending}")):
            parted.setdefault(meaning(name) or "", []).extend(files)
    if set(parted) == {""}:
        return parted[""]
    for wanted in ORDER[split]:
        if parted.get(wanted):
            return parted[wanted]
    words = ", ".join(NAMES["train"] if split == "train" else (*NAMES["val"], *NAMES["test"]))
    raise UserError(f"'{path}' has no {ending} file of the {split} split (a name with {words})")


def _labels(name: str, index: Index, classes: list[str]) -> Labels:
    used = np.bincount(index.label, minlength=len(index.words))
    if not index.words or (index.words[0] == "" and used[1:].sum() == 0):
        return unlabelled(len(index.label))
    if index.words[0] == "" and used[0]:
        return unlabelled(len(index.label), f"{name}: {used[0]} of {len(index.label)} samples have no label")
    present = [word for word, count in zip(index.words, used, strict=True) if count]
    found = worded(name, present)  # each word once, then by its place
    if found.fault:
        return unlabelled(len(index.label), found.fault)
    table = np.full(len(index.words), -1, np.int64)
    table[np.flatnonzero(used)] = found.numbers
    numbers = table[index.label]
    if classes and all(word.isdigit() for word in found.classes):
        if len(classes) < len(found.classes):
            fault = f"{name}: {NAMES_FILE} has {len(classes)} names, the labels go to {len(found.classes) - 1}"
            return unlabelled(len(numbers), fault)
        return Labels(numbers, classes)
    return Labels(numbers, found.classes)


# ---------------------------------------------------------------- the index
def _indexed(shards: list[Path]) -> Index:
    """Return the index from the cache, or make it and keep it there."""
    state = [[str(shard.resolve()), shard.stat().st_size, shard.stat().st_mtime_ns] for shard in shards]
    key = hashlib.sha256(json.dumps(["index 2", state]).encode()).hexdigest()[:32]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "triport"
    cached = folder / f"index-{key}.npz"
    try:
        with np.load(cached, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("shard", "offset", "size", "label")}
            return Index(**arrays, words=json.loads(str(file["words"])), remarks=json.loads(str(file["remarks"])))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # not there yet, or damaged: it is made again
    index = _make(shards)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            part = Path(scratch) / cached.name
            words, remarks = json.dumps(index.words), json.dumps(index.remarks)
            arrays = {"shard": index.shard, "offset": index.offset, "size": index.size, "label": index.label}
            np.savez(part, **arrays, words=np.array(words), remarks=np.array(remarks))
            part.replace(cached)
    except OSError as error:
        index.remarks.append(f"the index of the shards cannot be kept in '{folder}' ({error.strerror}): made each time")
    return index


def _make(shards: list[Path]) -> Index:
    """Read the headers of all shards."""
    columns = {"shard": array("i"), "offset": array("q"), "size": array("q"), "label": array("i")}
    words: dict[str, int] = {"": 0}
    others: Counter[str] = Counter()
    further: list[str] = []
    left = 0
    for number, shard in enumerate(shards):
        for sample in _samples(shard):
            if not sample.images:
                others[".".join(sample.labels) or "other members"] += 1
                continue
            image, *more = sorted(sample.images, key=_dots)  # a stable order: the first of the plainest
            left += len(more)
            further += [f"{shard.name}: {one.name}" for one in more[: 1 - len(further)]]
            columns["shard"].append(number)
            columns["offset"].append(image.offset)
            columns["size"].append(image.size)
            columns["label"].append(words.setdefault(_label(sample.labels), len(words)))
    kinds = ", ".join(f"{number} {ending}" for ending, number in others.most_common(5))
    remarks = [f"{others.total()} samples without an image left out ({kinds})"] if others else []
    if left:
        remarks.append(
            f"{left} further images of samples left out, first '{further[0]}': names count up to their first dot"
        )
    arrays = {name: np.array(column, column.typecode) for name, column in columns.items()}
    return Index(**arrays, words=list(words), remarks=remarks)


@dataclass
class _Sample:
    """The members that share a name."""

    images: list[tar_headers.Member] = field(default_factory=list)
    labels: dict[str, bytes] = field(default_factory=dict)


def _dots(member: tar_headers.Member) -> int:
    return member.name.rpartition("/")[2].count(".")


def _samples(shard: Path) -> Iterator[_Sample]:
    """Yield each sample of a shard; its members stand one after another."""
    key, sample = "", _Sample()
    images: dict[str, bool] = {}  # endings
    with tar_headers.Tar(shard) as tar:
        for member in tar:
            dot = member.name.find(".", member.name.rfind("/") + 1)
            if dot < 0 or member.name[dot - 1 : dot] in ("", "/") or dot + 1 == len(member.name):
                continue  # a sample has a name and an ending
            stem, ending = member.name[:dot], member.name[dot + 1 :]
            if stem != key:
                if key:
                    yield sample
                key, sample = stem, _Sample()
            lower = ending.lower()
            if lower not in images:
                images[lower] = is_image(f"x.{lower}")
            if images[lower]:
                sample.images.append(member)
            elif lower in LABELS and member.size <= 1 << 16:
                sample.labels[lower] = tar.content(member)
    if key:
        yield sample


def _label(found: dict[str, bytes]) -> str:
    """Return a sample's label as text, "" where it has none."""
    for name in LABELS:
        if name not in found:
            continue
        text = found[name].decode("utf-8", "replace").strip()
        if name != "json":
            return text[:256]
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            return ""
        if isinstance(fields, dict):
            value = next((fields[key] for key in ("label", "cls", "class") if key in fields), "")
            return str(value)[:256] if isinstance(value, (int, str)) else ""
    return ""
