"""PyTorch files in shards, as transformers wrote them: an index that says which .bin file holds which array."""

from __future__ import annotations

from pathlib import Path

from triport.core.source import Damaged, Source, parsing
from triport.weights.arrays import File, Lazy
from triport.weights.files import safetensors_file, torch_file

INDEX = ".bin.index.json"


def read(path: Path) -> File:
    """Read the shards that an index names, each lying beside it; Damaged where index and shards do not agree."""
    source = Source(path)
    index = safetensors_file.json_of(source.bytes(0, source.size, safetensors_file.MAX_HEADER))
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places:
        raise Damaged("is an index without a weight_map")
    if not all(map(_beside, places.values())):
        raise Damaged("is an index that names something else than .bin files beside it")
    tree: dict[str, Lazy] = {}
    names = dict.fromkeys(places.values())
    for name in names:
        shard = path.with_name(name)
        with parsing(shard):
            found = torch_file.read(shard).tree
        for key, array in found.items() if isinstance(found, dict) else ():
            if isinstance(array, Lazy) and places.get(key) == name:
                tree[key] = array
            elif isinstance(array, Lazy):
                raise Damaged(f"does not say that {str(key)[:80]!r} is in {name}")
    missing = [key for key in places if key not in tree]
    if missing:
        raise Damaged(f"names {missing[0][:80]!r}, which {places[missing[0]]} does not hold")
    return File("torch", path, {key: tree[key] for key in places}, note=f"PyTorch in {len(names)} shards")


def _beside(name: object) -> bool:
    """Whether this is the name of a .bin file in the same folder."""
    return isinstance(name, str) and name.isprintable() and name == Path(name).name and name.endswith(".bin")
