"""Which file or checkpoint a folder stands for: Hugging Face's, LiBai's, or one that holds a single file of weights."""

from __future__ import annotations

import shlex
from pathlib import Path

from triport.core.source import Damaged
from triport.weights.files import oneflow_file, safetensors_file
from triport.weights.files.torch_shards import INDEX as BIN_INDEX

ENDINGS = (".pth.tar", ".pth", ".pt", ".ckpt", ".bin", ".pdparams", ".pd", ".npz", ".safetensors")
NOT_MODELS = ("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scheduler.bin", "rng_state.pth")
SHOWN = 4


def inside(folder: Path) -> Path:
    """The file of PyTorch, Paddle or numpy that a folder stands for, or itself where it is a checkpoint as a whole.

    Damaged, with what to do, where it is neither.
    """
    if any((folder / name).exists() for name in (oneflow_file.PICKLE, oneflow_file.DONE, oneflow_file.LAST)):
        return folder
    if any(folder.glob("*.safetensors")) or any(folder.glob(f"*{safetensors_file.INDEX}")):
        return folder
    if any(folder.glob(f"*/{oneflow_file.PICKLE}")):
        return folder
    for name in ("pytorch_model.bin.index.json", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    indices = sorted(folder.glob(f"*{BIN_INDEX}"))
    found = indices or [p for p in sorted(folder.iterdir()) if p.name.lower().endswith(ENDINGS) and p.is_file()]
    found = [path for path in found if path.name not in NOT_MODELS] or found
    _foreign(folder)
    if not found:
        raise Damaged("is a folder that holds no checkpoint of OneFlow or LiBai and no file of weights")
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:SHOWN]) + (" …" if len(found) > SHOWN else "")
        raise Damaged(f"holds {len(found)} files of weights ({names}): name the one to read")
    return found[0]


def _foreign(folder: Path) -> None:
    """Damaged where a folder is a checkpoint of a kind that only its framework can read, with how to make a file."""
    if (folder / ".metadata").exists() and any(folder.glob("*.distcp")):
        raise Damaged(
            "is a folder of torch.distributed.checkpoint; make one file of it with "
            "torch.distributed.checkpoint.format_utils.dcp_to_torch_save(FOLDER, FILE)"
        )
    if (folder / "zero_to_fp32.py").exists():
        raise Damaged("is a checkpoint of DeepSpeed; make one file of it with its own zero_to_fp32.py")
    if any(folder.glob("*.pdmodel")) and any(folder.glob("*.pdiparams")):
        raise Damaged(
            "is a model that Paddle saved for inference; load it with paddle.jit.load and save its state_dict()"
        )
    for root in (folder, *folder.glob("*/")):
        if (root / "data.pkl").is_file() and (root / "data").is_dir():
            outer, name = shlex.quote(str(root.absolute().parent)), shlex.quote(root.absolute().name)
            raise Damaged(
                f"is a PyTorch file that was unpacked; pack it again with: cd {outer} && zip -0 -r file.pth {name}"
            )
