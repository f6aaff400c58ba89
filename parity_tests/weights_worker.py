"""Asks a framework itself: what it saves, and what it makes of files that `weights` wrote. Runs in its interpreter.

python weights_worker.py FRAMEWORK save FOLDER    the framework's own files, and truth.npz with their arrays
python weights_worker.py FRAMEWORK load FOLDER    for every file or folder there, NAME.loaded.npz and NAME.json

A truth holds each array under its path; bfloat16 as uint16 under `path@bfloat16`.
"""

from __future__ import annotations

import argparse
import collections
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np

DTYPES = {
    "torch": "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64",
    "paddle": "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64",
    "oneflow": "float64 float32 float16 int64 int32 int8 uint8 bool",
}


def arrays(framework: Any, name: str) -> dict[str, Any]:
    """One tensor of every dtype, a scalar, an empty one, a transposed one and a slice."""
    whole = framework.to_tensor if name == "paddle" else framework.tensor
    made = collections.OrderedDict()
    for dtype in DTYPES[name].split():
        values = whole(np.arange(24).reshape(2, 3, 4) % 5)
        made[dtype] = values.astype(dtype) if name == "paddle" else values.to(getattr(framework, dtype))
    made["scalar"] = whole(np.float32(3.5))
    made["empty"] = whole(np.zeros((0, 3), np.float32))
    table = whole(np.arange(12, dtype=np.float32).reshape(3, 4))
    made["transposed"], made["slice"] = table.t(), table[1:, 1:3]
    made["blocks.0.attn.qkv.weight"] = whole(np.linspace(-1, 1, 48, dtype=np.float32).reshape(6, 8))
    return made


def truth(tensors: dict[str, Any]) -> dict[str, np.ndarray]:
    """The values of tensors as numpy gives them."""
    found = {}
    for key, tensor in tensors.items():
        if "bfloat16" in str(tensor.dtype).lower():
            wide = tensor.float() if hasattr(tensor, "float") else tensor.astype("float32")
            found[f"{key}@bfloat16"] = (np.ascontiguousarray(wide.numpy()).view(np.uint32) >> 16).astype(np.uint16)
        else:
            found[key] = tensor.numpy()
    return found


def flat(value: Any, is_tensor: Any, path: str = "") -> tuple[Any, dict[str, Any]]:
    """The structure with tensors replaced by "tensor", and the tensors by their paths."""
    if is_tensor(value):
        return "tensor", {path: value}
    tensors: dict[str, Any] = {}
    if isinstance(value, dict):
        parts = {str(key): flat(part, is_tensor, f"{path}/{key}") for key, part in value.items()}
        shape: Any = {key: part[0] for key, part in parts.items()}
        found = [part[1] for part in parts.values()]
    elif isinstance(value, (list, tuple)):
        listed = [flat(part, is_tensor, f"{path}/{index}") for index, part in enumerate(value)]
        shape, found = [part[0] for part in listed], [part[1] for part in listed]
    else:
        return value, {}
    for part in found:
        tensors.update(part)
    return shape, tensors


def nested(tensors: dict[str, Any]) -> dict[str, Any]:
    """A training checkpoint of plain values around the tensors."""
    return {"epoch": 3, "arch": "vit_small", "state_dict": tensors, "scaler": {}, "more": [1, 2.5, None, (True, "y")]}


def save_torch(torch: Any, folder: Path, tensors: dict[str, Any]) -> None:
    """Files of PyTorch: both forms, shared storages, parameters, everything MoCo v3 and MAE put beside the model."""
    given = torch.nn.Parameter(tensors["float32"].clone())
    given.note = "an attribute"
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    beside = {
        "args": argparse.Namespace(lr=1e-3, mean=(0.5, 0.5), output=Path("/out"), resume=""),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "optimizer": optimizer.state_dict(),
        "state": collections.defaultdict(dict, {1: {"a": 1}}),
        "best": np.float64(0.5),
        "log": np.arange(3.0),
        "size": torch.Size([1, 2]),
        "device": torch.device("cuda:0"),
        "dtype": torch.float16,
        "names": {"x"},
        "parameter": given,
        "model": model.state_dict(),
        "path": Path("a/b"),
    }
    for name, new in (("zip", True), ("legacy", False)):
        torch.save({**nested(tensors), **beside}, folder / f"{name}.pth.tar", _use_new_zipfile_serialization=new)
        torch.save(tensors, folder / f"flat_{name}.pth", _use_new_zipfile_serialization=new)
    torch.save(
        {"f8": torch.ones(3).to(torch.float8_e4m3fn), "u16": torch.ones(3).to(torch.uint16)}, folder / "untyped.pth"
    )
    torch.save(tensors, folder / "protocol_4.pth", pickle_protocol=4)
    table = torch.zeros(4, 4)
    torch.save(
        {"a": table, "b": table[1], "c": table.expand(2, 4, 4), "storage": torch.zeros(8).untyped_storage()},
        folder / "shared.pth",
    )
    torch.serialization.set_crc32_options(False)
    torch.save(tensors, folder / "no_crc.pth")


def save_paddle(paddle: Any, folder: Path, tensors: dict[str, Any]) -> None:
    """Files of Paddle: both layouts in each protocol, an optimiser's state."""
    for protocol in (2, 3, 4):
        paddle.save(tensors, str(folder / f"a{protocol}.pdparams"), protocol=protocol)
        paddle.save(nested(tensors), str(folder / f"b{protocol}.pd"), protocol=protocol)
    model = paddle.nn.Linear(3, 2)
    rate = paddle.optimizer.lr.CosineAnnealingDecay(0.1, 10)
    optimizer = paddle.optimizer.AdamW(learning_rate=rate, parameters=model.parameters())
    model(paddle.ones([2, 3])).sum().backward()
    optimizer.step()
    paddle.save(optimizer.state_dict(), str(folder / "adam.pdopt"))


def save_oneflow(flow: Any, folder: Path, tensors: dict[str, Any]) -> None:
    """Folders of OneFlow, a checkpoint and a run as LiBai writes them, and a plain pickle of tensors."""
    flow.save(tensors, str(folder / "flat"))
    flow.save(nested(tensors), str(folder / "nested"))
    run = folder / "run" / "model_0000002"
    run.mkdir(parents=True)
    model = flow.nn.Linear(3, 2)
    flow.save(model.state_dict(), str(run / "model"))
    flow.save({"last_step": 2, "base_lrs": [0.1], "_last_lr": [0.05]}, str(run / "lr_scheduler"))
    (folder / "run" / "last_checkpoint").write_text("model_0000002")
    (folder / "plain.pkl").write_bytes(pickle.dumps(tensors))
    flow.save({"b": tensors["float32"].to(flow.bfloat16)}, str(folder / "bfloat16"))  # 0.9.0 cannot load this itself


def load_one(framework: Any, name: str, path: Path) -> Any:
    """What the framework's own loader makes of a file or folder."""
    if name == "torch":
        mapped = framework.load(path, weights_only=True, mmap=True)
        read = framework.load(path, weights_only=True)
        assert str(mapped) == str(read)
        return read
    if name == "paddle":
        return framework.load(str(path))
    if path.is_dir():
        return framework.load(str(path))
    return pickle.loads(path.read_bytes())["data"]


def main() -> None:
    """Do what the command line says."""
    name, task, place = sys.argv[1:]
    folder = Path(place)
    framework = __import__(name)
    if task == "save":
        tensors = arrays(framework, name)
        {"torch": save_torch, "paddle": save_paddle, "oneflow": save_oneflow}[name](framework, folder, tensors)
        np.savez(folder / "truth.npz", **truth(tensors))  # type: ignore[arg-type]
        return
    is_tensor = framework.is_tensor if name != "oneflow" else lambda value: isinstance(value, framework.Tensor)
    for path in sorted(folder.iterdir()):
        shape, tensors = flat(load_one(framework, name, path), is_tensor)
        np.savez(folder / f"{path.name}.loaded.npz", **truth(tensors))  # type: ignore[arg-type]
        (folder / f"{path.name}.json").write_text(json.dumps(shape))


if __name__ == "__main__":
    main()
