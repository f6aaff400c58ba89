"""safetensors, one file or sharded with its index: a length, a JSON header, the bytes.

The safetensors library checks a file's layout. Its API has no index of shards, copies what it reads, lets a name stand
twice, has no float8 for numpy, and writes from arrays that are all in memory: these parts are here.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from triport.core.errors import UserError
from triport.core.pickle.machine import put
from triport.core.pickle.numpy_arrays import checked_shape, ready
from triport.core.source import Damaged, Source, parsing
from triport.weights.arrays import DTYPES, File, Lazy, Tree, arrays_only, raw
from triport.weights.writing import free, whole_file, whole_stream

INDEX = ".safetensors.index.json"
MAX_HEADER = 1 << 24
SHARD = 5 * 10**9
TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "C64": "complex64", "BOOL": "bool",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16",
    "U8": "uint8", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
CODES = {dtype: code for code, dtype in TYPES.items()}


def read(path: Path) -> File:
    """Read a file, an index with its shards, or a folder that holds one of both."""
    if path.is_dir():
        path = _in_folder(path)
    if path.name.endswith(".json"):
        return _sharded(path)
    tree, metadata = _one(Source(path))
    return File("safetensors", path, tree, metadata, "safetensors")


def in_folder(folder: Path) -> bool:
    """Whether a folder holds safetensors files, and nothing of OneFlow that would come first."""
    return bool(list(folder.glob("*.safetensors")) or list(folder.glob(f"*{INDEX}")))


def _in_folder(folder: Path) -> Path:
    """Return the index of a folder, or its only safetensors file."""
    found = sorted(folder.glob(f"*{INDEX}")) or sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        raise Damaged(f"holds {len(found) or 'no'} safetensors files; name the one to read")
    return found[0]


def _sharded(path: Path) -> File:
    """Read the shards that an index names, each lying beside it."""
    source = Source(path)
    index = json_of(source.bytes(0, source.size, MAX_HEADER))
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places:
        raise Damaged("is an index without a weight_map")
    if not all(map(_beside, places.values())):
        raise Damaged("is an index that names something else than safetensors files beside it")
    names = dict.fromkeys(places.values())
    tree: dict[str, Lazy | None] = dict.fromkeys(places)
    metadata: dict[str, str] = {}
    for name in names:
        with parsing(path.with_name(name)):
            arrays, own = _one(Source(path.with_name(name)))
        metadata |= own
        for key, array in arrays.items():
            if places.get(key) != name:
                raise Damaged(f"does not say that {key[:80]!r} is in {name}")
            tree[key] = array
    missing = [key for key, array in tree.items() if array is None]
    if missing:
        raise Damaged(f"names {missing[0][:80]!r}, which {places[missing[0]]} does not hold")
    return File("safetensors", path, tree, metadata, f"safetensors in {len(names)} shards")


def _beside(name: object) -> bool:
    """Whether this is the name of a safetensors file in the same folder."""
    if not isinstance(name, str) or not name.isprintable():
        return False
    return name == Path(name).name and name.endswith(".safetensors")


def _one(source: Source) -> tuple[dict[str, Lazy], dict[str, str]]:
    """Describe the arrays of one file and return its metadata."""
    length = struct.unpack("<Q", source.bytes(0, 8))[0]
    if length > MAX_HEADER or length > source.size - 8:
        raise Damaged(f"announces a header of {length} bytes; it is cut short or no safetensors file")
    header = json_of(
        source.bytes(8, length, MAX_HEADER)
    )  # without names given twice, of which the library takes the last
    try:
        with safe_open(source.path, "numpy") as checked:  # offsets without gaps or overlaps, sizes, metadata of texts
            metadata = checked.metadata() or {}
    except SafetensorError as fault:
        raise Damaged(f"is cut short or damaged ({str(fault)[:200]}); fetch or make it again") from None
    if not isinstance(header, dict):
        raise Damaged("has a header that is not a table of arrays")
    header.pop("__metadata__", None)
    return {name: _array(source, 8 + length, name, entry) for name, entry in header.items()}, metadata


def _array(source: Source, begin: int, name: str, entry: dict[str, Any]) -> Lazy:
    """Describe one array. Its values are views of the mapped file; the library would copy them."""
    if entry["dtype"] not in TYPES:
        raise Damaged(f"holds {name[:80]!r} in {entry['dtype']}, which numpy has no dtype for")
    dtype = TYPES[entry["dtype"]]
    sizes = checked_shape(entry["shape"], DTYPES[dtype].itemsize)
    first, last = entry["data_offsets"]
    load = lambda: ready(source.array(begin + first, last - first), DTYPES[dtype]).reshape(sizes)  # noqa: E731
    stretch = source.stretch(begin + first) if DTYPES[dtype].isnative else None
    return Lazy(sizes, dtype, load, where=source.path, stretch=stretch)


def json_of(raw_text: bytes) -> Any:
    """Read JSON without repeated names, NaN, or nesting beyond Python's own limit."""

    def unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, value in pairs:
            put(made, key, value)
        return made

    def refuse(text: str) -> Any:
        raise Damaged(f"has {text} in its header")

    try:
        return json.loads(raw_text.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as fault:
        raise Damaged(f"is damaged: what should be JSON is not ({str(fault)[:120]})") from None


def write(
    path: Path, tree: Tree, metadata: dict[str, str] | None = None, force: bool = False, shard: int = SHARD
) -> None:
    """Write named arrays; to shards of at most `shard` bytes if `path` is an index (.safetensors.index.json)."""
    arrays = arrays_only(tree, "safetensors")
    for name, array in arrays.items():
        if array.dtype not in CODES:
            raise UserError(
                f"{path}: safetensors holds no arrays of {array.dtype}; convert {name!r} with --dtype first"
            )
        if name == "__metadata__" or not name.isprintable():
            raise UserError(f"{path}: safetensors cannot hold an array named {name!r}")
    if path.name.endswith(INDEX):
        _write_shards(path, arrays, metadata or {}, force, shard)
    else:
        _write_one(path, arrays, metadata or {}, force)


def _write_one(path: Path, arrays: dict[str, Lazy], metadata: dict[str, str], force: bool) -> None:
    """Write one file, wide dtypes first so that every array is aligned; one array is in memory at a time."""
    order = sorted(arrays, key=lambda name: -DTYPES[arrays[name].dtype].itemsize)
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name in order:
        array = arrays[name]
        header[name] = {
            "dtype": CODES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [end, end + array.nbytes],
        }
        end += array.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise UserError(f"{path}: the names of {len(arrays)} arrays do not fit into the header of a safetensors file")
    with whole_stream(path, force) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            file.write(raw(arrays[name].read()))


def _write_shards(path: Path, arrays: dict[str, Lazy], metadata: dict[str, str], force: bool, shard: int) -> None:
    """Write the shards, then the index that makes them one."""
    shards: list[dict[str, Lazy]] = [{}]
    size = 0
    for name, array in arrays.items():
        if size and size + array.nbytes > shard:
            shards.append({})
            size = 0
        shards[-1][name] = array
        size += array.nbytes
    stem = path.name[: -len(INDEX)]
    names = [f"{stem}-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    for name in (*names, path.name):
        free(path.with_name(name), force, folder=False)
    places: dict[str, str] = {}
    for name, part in zip(names, shards, strict=True):
        _write_one(path.with_name(name), part, metadata, force)
        places |= dict.fromkeys(part, name)
    total = sum(array.nbytes for array in arrays.values())
    with whole_file(path, force) as file:
        file.write(
            json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2, ensure_ascii=False).encode()
        )
