"""Time and memory of converting a 1.3 GB checkpoint between the frameworks' files, beside a plain copy of its bytes.

python benchmarks/convert.py [--rounds N] [--blocks N] [--folder DIR]

Makes a MAE ViT-L checkpoint of random numbers (.pth), then converts it with `weights` to .safetensors, .pdparams and a
OneFlow folder, each in a process of its own, in turn with copying the same arrays through numpy (fromfile, tofile),
with and without waiting for the disk as `weights` does, and with torch.load + safetensors where torch is there.
Printed are medians, the median of each round's ratio to the copy that waits, and the peak memory of the process.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from weights.arrays import DTYPES, Lazy, leaves  # noqa: E402
from weights.files import read, write  # noqa: E402

TASKS = {
    "copy": "numpy copy",
    "copy-settled": "numpy copy, on disk",
    "same": "weights: .pth to .pth",
    "safetensors": "weights: .pth to .safetensors",
    "pdparams": "weights: .pth to .pdparams",
    "oneflow": "weights: .pth to OneFlow folder",
    "torch": "torch.load + safetensors",
}


def shapes(blocks: int) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a MAE ViT-L with its decoder of 8 blocks, 16x16 patches of 224x224."""
    found: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, 1024), "mask_token": (1, 1, 512)}
    found |= {"pos_embed": (1, 197, 1024), "decoder_pos_embed": (1, 197, 512)}
    found |= {"patch_embed.proj.weight": (1024, 3, 16, 16), "patch_embed.proj.bias": (1024,)}
    for prefix, depth, width in (("blocks", blocks, 1024), ("decoder_blocks", 8, 512)):
        for index in range(depth):
            layers = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
            layers |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
            for layer, shape in layers.items():
                found |= {f"{prefix}.{index}.{layer}.weight": shape, f"{prefix}.{index}.{layer}.bias": shape[:1]}
            for norm in ("norm1", "norm2"):
                found |= {f"{prefix}.{index}.{norm}.{part}": (width,) for part in ("weight", "bias")}
    found |= {f"norm.{part}": (1024,) for part in ("weight", "bias")}
    found |= {f"decoder_norm.{part}": (512,) for part in ("weight", "bias")}
    found |= {"decoder_embed.weight": (512, 1024), "decoder_embed.bias": (512,)}
    return found | {"decoder_pred.weight": (768, 512), "decoder_pred.bias": (768,)}


def make(path: Path, blocks: int) -> None:
    """Write the checkpoint, one array at a time."""
    generator = np.random.default_rng(0)

    def array(shape: tuple[int, ...]) -> Lazy:
        return Lazy(shape, "float32", lambda: generator.standard_normal(shape, dtype=np.float32))

    write(path, {"model": {name: array(shape) for name, shape in shapes(blocks).items()}, "epoch": 799})


def copy(source: Path, target: Path, settle: bool) -> None:
    """Copy the arrays' bytes through numpy, array by array."""
    sizes = [leaf.nbytes for leaf in leaves(read(source).tree)]
    with open(source, "rb") as file, open(target, "wb") as out:
        for size in sizes:
            np.fromfile(file, np.uint8, size).tofile(out)
        if settle:
            out.flush()
            os.fsync(out.fileno())


def task(name: str, source: Path, target: Path) -> None:
    """Do one conversion in this process; print its seconds and the process's peak of memory in bytes."""
    if name == "torch":
        import safetensors.torch
        import torch
    begin = time.perf_counter()
    if name.startswith("copy"):
        copy(source, target, name == "copy-settled")
    elif name == "torch":
        state = torch.load(source, weights_only=True)["model"]
        safetensors.torch.save_file(state, target)
    else:
        form = {"same": "torch", "pdparams": "paddle"}.get(name, name)
        write(target, read(source).tree["model"], form)
    seconds = time.perf_counter() - begin
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    print(seconds, peak)


def measure(name: str, source: Path, target: Path) -> tuple[float, float]:
    """Run one task in a fresh process; return seconds and peak bytes."""
    command = [sys.executable, __file__, "--task", name, "--source", str(source), "--target", str(target)]
    out = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()
    seconds, peak = map(float, out.stdout.split())
    return seconds, peak


def main() -> None:
    """Make the checkpoint, run all tasks in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each task is run")
    parser.add_argument("--blocks", type=int, default=24, help="encoder blocks; 24 is ViT-L")
    parser.add_argument("--folder", type=Path, default=None, help="where to write; needs 4 GB")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--target", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        task(options.task, options.source, options.target)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source, target = Path(folder, "source.pth"), Path(folder, "target")
        make(source, options.blocks)
        all_shapes = shapes(options.blocks).values()
        largest = max(int(np.prod(shape)) for shape in all_shapes) * DTYPES["float32"].itemsize
        print(f"{len(all_shapes)} arrays, {source.stat().st_size / 1e9:.2f} GB, the largest {largest / 1e6:.1f} MB")
        names = [name for name in TASKS if name != "torch" or _has_torch()]
        seconds: dict[str, list[float]] = {name: [] for name in names}
        peaks: dict[str, float] = {}
        for _ in range(options.rounds):
            for name in names:
                taken, peak = measure(name, source, target)
                seconds[name].append(taken)
                peaks[name] = max(peak, peaks.get(name, 0))
        print(f"{'':34}{'seconds':>9}{'of copy':>9}{'peak MB':>9}")
        for name in names:
            ratio = statistics.median(t / c for t, c in zip(seconds[name], seconds["copy-settled"], strict=True))
            print(f"{TASKS[name]:34}{statistics.median(seconds[name]):9.2f}{ratio:9.2f}{peaks[name] / 1e6:9.0f}")


def _has_torch() -> bool:
    """Whether torch can be imported here."""
    return subprocess.run([sys.executable, "-c", "import torch"], capture_output=True).returncode == 0


if __name__ == "__main__":
    main()
