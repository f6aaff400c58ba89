"""Hugging Face data sets in parquet files, with the images' bytes in a column; pyarrow is needed."""

from __future__ import annotations

import importlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from triport.core.data.readers.shards import find
from triport.core.data.sample.decode import BrokenImage, Decoding, Source, decode
from triport.core.data.sample.labels import Labels, numbered, unlabelled, worded
from triport.core.data.sample.samples import Samples
from triport.core.errors import UserError

GROUPS = 8  # row groups that a process keeps: their images come in random order
IMAGES = ("image", "img", "jpg", "jpeg", "png", "picture", "pixels")
LABELS = ("label", "labels", "fine_label", "class", "target")


def pyarrow() -> Any:
    """Import pyarrow.parquet, or raise UserError that names the extra."""
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UserError('parquet files need pyarrow: pip install "triport[parquet]"') from None


class ParquetDataset(Samples):
    """Images in row groups of parquet files. A group is read whole and kept for a while; small groups are faster."""

    def __init__(
        self, name: str, files: Sequence[Path], column: str, groups: np.ndarray, labels: Labels, decoding: Decoding
    ) -> None:
        super().__init__(name, labels, decoding)
        self.files, self.column = [str(file) for file in files], column
        self.groups = groups  # int64 (groups, 3): file, group in it, first sample
        self._cache: OrderedDict[int, Any] = OrderedDict()
        self._open: dict[int, Any] = {}

    def where(self, index: int) -> str:
        """Return the file, row group and row of image `index`."""
        group = int(np.searchsorted(self.groups[:, 2], index, "right")) - 1
        file, number, first = self.groups[group]
        return f"{self.files[file]}#{number}.{index - first}"

    def image(self, index: int) -> Source:
        """Return image `index`. Raises BrokenImage."""
        group = int(np.searchsorted(self.groups[:, 2], index, "right")) - 1
        where = self.where(index)
        try:
            data = self._bytes(group)[index - int(self.groups[group, 2])].as_py()
        except (OSError, ValueError, IndexError, MemoryError) as error:
            raise BrokenImage(f"{where}: {' '.join(str(error).split())}") from None
        if not isinstance(data, bytes):
            raise BrokenImage(f"{where}: there are no bytes of an image in the row")
        return decode(data, where, self.decoding)

    def _bytes(self, group: int) -> Any:
        """Return the column of a row group, as an array of binary values."""
        if group in self._cache:
            self._cache.move_to_end(group)
            return self._cache[group]
        file, number, _ = (int(value) for value in self.groups[group])
        if file not in self._open:
            self._open[file] = pyarrow().ParquetFile(self.files[file])
        table = self._open[file].read_row_group(number, columns=[self.column], use_threads=False)
        column = table.column(0).combine_chunks()
        if str(column.type).startswith("struct"):
            column = column.field("bytes")
        self._cache[group] = column
        if len(self._cache) > GROUPS:
            self._cache.popitem(last=False)
        return column

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict(), "_open": {}}


def read_parquet(path: Path, split: str, decoding: Decoding) -> ParquetDataset:
    """Read .parquet files with a column of image bytes: one file, or a folder (or its data/) of them.

    The files of a split are those with its word in their names (train-00000-of-00005.parquet). The label column and
    the names of the classes are the data set's features, where the file has them.
    """
    module = pyarrow()
    files = find(path, split, ".parquet")
    groups, parts, total, column, features, label = [], [], 0, "", {}, None
    for number, file in enumerate(files):
        try:
            opened = module.ParquetFile(file)
            schema = opened.schema_arrow
            if not number:
                features = _features(schema)
                column = _image_column(schema, features, file)
                label = _label_column(schema, features)
            for group in range(opened.metadata.num_row_groups):
                rows = opened.metadata.row_group(group).num_rows
                if rows:
                    groups.append((number, group, total))
                total += rows
            if column not in schema.names:
                raise UserError(f"'{file}' has no column '{column}', which '{files[0]}' has")
            if label is not None:
                parts.append(opened.read(columns=[label], use_threads=False).column(0).to_numpy())
        except UserError:
            raise
        except Exception as error:  # pyarrow raises many kinds
            why = " ".join(str(error).split())[:200]
            raise UserError(f"'{file}' is not a parquet file that can be read: {why}") from None
    if not total:
        raise UserError(f"'{path}' holds no rows")
    labels = _labels(str(path), parts, total, features.get(label or "", {}).get("names", ()))
    return ParquetDataset(f"{path.name} {split}", files, column, np.array(groups, np.int64), labels, decoding)


def _features(schema: Any) -> dict[str, Any]:
    """Return what the `datasets` library wrote about the columns."""
    try:
        stored = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: value for name, value in stored.items() if isinstance(value, dict)}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _image_column(schema: Any, features: dict[str, Any], file: Path) -> str:
    fits = [name for name in schema.names if _holds_bytes(schema.field(name).type)]
    declared = [name for name in fits if features.get(name, {}).get("_type") == "Image"]
    named = [name for name in IMAGES if name in fits]
    for found in (declared, named, fits):
        if len(found) == 1 or (found is named and found):
            return str(found[0])
    columns = ", ".join(schema.names[:9])
    raise UserError(f"'{file}' needs exactly one column with image bytes (its columns are {columns})")


def _holds_bytes(kind: Any) -> bool:
    if str(kind) in ("binary", "large_binary"):
        return True
    return str(kind).startswith("struct") and kind.get_field_index("bytes") >= 0


def _label_column(schema: Any, features: dict[str, Any]) -> str | None:
    declared = [name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel"]
    for name in LABELS:
        if name in schema.names and (name in declared or not declared):
            return name
    return str(declared[0]) if len(declared) == 1 else None


def _labels(name: str, parts: list[np.ndarray], total: int, names: Any) -> Labels:
    if not parts:
        return unlabelled(total)
    values = np.concatenate(parts)
    if values.dtype.kind == "O":
        if not all(isinstance(value, str) for value in values.tolist()):
            return unlabelled(total, f"{name}: some labels are missing or not words")
        return worded(name, values.tolist())
    if values.dtype.kind in "iu" and len(values) and (values == -1).all():
        return unlabelled(total)  # how test splits without labels are published
    classes = [str(word) for word in names] if isinstance(names, list) else []
    return numbered(name, values, total, classes)
