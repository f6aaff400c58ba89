"""Time and memory of converting a 1.3 GB checkpoint between the frameworks' files, beside a plain copy of its bytes.

python benchmarks/convert.py [--rounds N] [--blocks N] [--folder DIR] [--only TASK ...]

Makes a MAE ViT-L checkpoint of random numbers (.pth). Then, in turn and each in a process of its own: a copy of the
same arrays through numpy (fromfile, tofile), with and without waiting for the disk; `weights.files` alone from .pth to
each form, which waits for the disk; the whole of `triport convert`, which also computes SHA-256, reads back and
compares, in several threads; and torch.load + safetensors where torch is there. Before every task a copy is made that
nobody times, so that each task finds the system's free memory as another left it: the first to touch fresh pages pays
three times as much. Printed are medians, the medians of the ratios of seconds and of processor seconds to those of a
copy that waits for the disk and was made just before the task, how many of the machine's processors a task had on
average, and the peak memory of the process.
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

from triport.weights.arrays import DTYPES, Lazy, leaves  # noqa: E402
from triport.weights.files.files import read, write  # noqa: E402

# what is measured: its name, and the ending of its target
TASKS = {
    "copy": ("numpy copy", ".bin"),
    "copy-settled": ("numpy copy, on disk", ".bin"),
    "torch": ("triport.weights.files.files: .pth to .pth", ".pth"),
    "safetensors": ("triport.weights.files.files: .pth to .safetensors", ".safetensors"),
    "paddle": ("triport.weights.files.files: .pth to .pdparams", ".pdparams"),
    "oneflow": ("triport.weights.files.files: .pth to OneFlow folder", ""),
    "convert-safetensors": ("triport convert: .pth to .safetensors", ".safetensors"),
    "convert-paddle": ("triport convert: .pth to .pd", ".pd"),
    "convert-libai": ("triport convert: .pth to LiBai", ""),
    "load-save": ("torch.load + safetensors", ".safetensors"),
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
    """Do one conversion in this process; print its seconds, those of the processor, and its peak of memory in bytes."""
    if name == "load-save":
        import safetensors.torch
        import torch
    from triport.weights.commands.convert import convert

    begin, used = time.perf_counter(), time.process_time()
    if name.startswith("copy"):
        copy(source, target, name == "copy-settled")
    elif name == "load-save":
        state = torch.load(source, weights_only=True)["model"]
        safetensors.torch.save_file(state, target)
    elif name.startswith("convert"):
        convert(source, target, heads=16, decoder_heads=16)
    else:
        write(target, read(source).tree["model"], name)
    seconds, used = time.perf_counter() - begin, time.process_time() - used
    status = Path("/proc/self/status").read_text()
    print(seconds, used, int(status.split("VmHWM:")[1].split()[0]) * 1024)


Figures = tuple[float, float, float]  # seconds, processor seconds, peak bytes


def measure(name: str, source: Path) -> Figures:
    """Run one task in a fresh process; return seconds, processor seconds and peak bytes."""
    target = source.with_name(f"target{TASKS[name][1]}")
    command = [sys.executable, __file__, "--task", name, "--source", str(source), "--target", str(target)]
    out = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    for path in source.parent.glob("target*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    seconds, used, peak = map(float, out.stdout.split())
    return seconds, used, peak


def beside_a_copy(name: str, source: Path) -> tuple[Figures, Figures]:
    """The figures of a task, and of a copy made just before it; an untimed copy comes before each."""
    measure("copy-settled", source)
    copied = measure("copy-settled", source)
    return measure(name, source), copied


def main() -> None:
    """Make the checkpoint, run all tasks in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each task is run")
    parser.add_argument("--blocks", type=int, default=24, help="encoder blocks; 24 is ViT-L")
    parser.add_argument("--folder", type=Path, default=None, help="where to write; needs 3 GB")
    parser.add_argument("--only", nargs="+", choices=TASKS, metavar="TASK", help=f"some of {', '.join(TASKS)}")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--target", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        task(options.task, options.source, options.target)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source = Path(folder, "source.pth")
        make(source, options.blocks)
        all_shapes = shapes(options.blocks).values()
        largest = max(int(np.prod(shape)) for shape in all_shapes) * DTYPES["float32"].itemsize
        print(f"{len(all_shapes)} arrays, {source.stat().st_size / 1e9:.2f} GB, the largest {largest / 1e6:.1f} MB")
        names = [name for name in TASKS if name in (options.only or TASKS)]
        names = [name for name in names if name != "load-save" or _has_torch()]
        rounds = [{name: beside_a_copy(name, source) for name in names} for _ in range(options.rounds)]
        print(f"{'':40}{'seconds':>9}{'of copy':>9}{'processor':>11}{'of copy':>9}{'share':>7}{'peak MB':>9}")
        for name in names:
            own, copies = zip(*(found[name] for found in rounds), strict=True)
            seconds, used, peaks = zip(*own, strict=True)
            slower, more = (
                statistics.median(it[k] / copied[k] for it, copied in zip(own, copies, strict=True)) for k in (0, 1)
            )
            times = f"{statistics.median(seconds):9.2f}{slower:9.2f}{statistics.median(used):11.2f}{more:9.2f}"
            share = statistics.median(it[1] / it[0] for it in own)
            print(f"{TASKS[name][0]:40}{times}{share:7.2f}{max(peaks) / 1e6:9.0f}")


def _has_torch() -> bool:
    """Whether torch can be imported here."""
    return subprocess.run([sys.executable, "-c", "import torch"], capture_output=True).returncode == 0


if __name__ == "__main__":
    main()
