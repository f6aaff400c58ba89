"""Time and memory of converting a checkpoint between the frameworks' files, beside a plain copy of its bytes.

python benchmarks/convert.py [--model large|base] [--source FORM] [--rounds N] [--folder DIR] [--only TASK ...]

Makes a checkpoint of random numbers: a MAE ViT-L with its decoder (1.3 GB), or a ViT-B classifier (0.35 GB), as .pth or
.safetensors. Then, in turn and each in a process of its own: a copy of the same arrays through numpy (fromfile,
tofile), with and without waiting for the disk; the floor: SHA-256 and CRC-32 of the source's bytes, each once, without
reading anything else or writing; `weights.files` alone, without checks; `triport convert`, which also computes SHA-256,
reads back and compares, in several threads; and torch.load + safetensors where torch is there. Before every task a copy
is made that nobody times, so that each task finds the system's free memory as another left it: the first to touch fresh
pages pays three times as much. Printed are medians, the medians of the ratios of seconds and of processor seconds to
those of a copy that waits for the disk and was made just before the task, how many of the machine's processors a task
had on average, and the peak memory of the process. The start of Python and its imports are not in the times of a task;
they are printed at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import mmap
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
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
    "floor": ("SHA-256 and CRC-32 of the source", ""),
    "torch": ("files alone, to .pth", ".pth"),
    "safetensors": ("files alone, to .safetensors", ".safetensors"),
    "paddle": ("files alone, to .pdparams", ".pdparams"),
    "oneflow": ("files alone, to OneFlow folder", ""),
    "convert-safetensors": ("triport convert to .safetensors", ".safetensors"),
    "convert-torch": ("triport convert to .pth", ".pth"),
    "convert-paddle": ("triport convert to .pd", ".pd"),
    "convert-libai": ("triport convert to LiBai", ""),
    "load-save": ("torch.load + safetensors", ".safetensors"),
}
MODELS = {"large": (24, 1024, 16), "base": (12, 768, 12)}  # blocks, width, heads


def shapes(model: str) -> dict[str, tuple[int, ...]]:
    """Return names and shapes: MAE's ViT-L with its decoder of 8 blocks, or a ViT-B classifier of 1000 classes."""
    blocks, width, _ = MODELS[model]
    found: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, width), "pos_embed": (1, 197, width)}
    found |= {"patch_embed.proj.weight": (width, 3, 16, 16), "patch_embed.proj.bias": (width,)}
    found |= _blocks("blocks", blocks, width) | {f"norm.{part}": (width,) for part in ("weight", "bias")}
    if model == "base":
        return found | {"head.weight": (1000, width), "head.bias": (1000,)}
    found |= {"mask_token": (1, 1, 512), "decoder_pos_embed": (1, 197, 512)}
    found |= _blocks("decoder_blocks", 8, 512) | {f"decoder_norm.{part}": (512,) for part in ("weight", "bias")}
    found |= {"decoder_embed.weight": (512, width), "decoder_embed.bias": (512,)}
    return found | {"decoder_pred.weight": (768, 512), "decoder_pred.bias": (768,)}


def _blocks(prefix: str, count: int, width: int) -> dict[str, tuple[int, ...]]:
    layers = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    layers |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    found: dict[str, tuple[int, ...]] = {}
    for index in range(count):
        for layer, shape in layers.items():
            found |= {f"{prefix}.{index}.{layer}.weight": shape, f"{prefix}.{index}.{layer}.bias": shape[:1]}
        for norm in ("norm1", "norm2"):
            found |= {f"{prefix}.{index}.{norm}.{part}": (width,) for part in ("weight", "bias")}
    return found


def make(path: Path, model: str) -> None:
    """Write the checkpoint, one array at a time."""
    generator = np.random.default_rng(0)

    def array(shape: tuple[int, ...]) -> Lazy:
        return Lazy(shape, "float32", lambda: generator.standard_normal(shape, dtype=np.float32))

    arrays = {name: array(shape) for name, shape in shapes(model).items()}
    write(path, arrays if path.suffix == ".safetensors" else {"model": arrays, "epoch": 799})


def copy(source: Path, target: Path, settle: bool) -> None:
    """Copy the arrays' bytes through numpy, array by array."""
    sizes = [leaf.nbytes for leaf in leaves(read(source).tree)]
    with open(source, "rb") as file, open(target, "wb") as out:
        for size in sizes:
            np.fromfile(file, np.uint8, size).tofile(out)
        if settle:
            out.flush()
            os.fsync(out.fileno())


def floor(source: Path) -> None:
    """Compute SHA-256 and CRC-32 of the mapped source, each once."""
    with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        hashlib.sha256(data)
        zlib.crc32(data)


def task(name: str, source: Path, target: Path, heads: int) -> None:
    """Do one conversion in this process; print its seconds, those of the processor, and its peak of memory in bytes."""
    if name == "load-save":
        import safetensors.torch
        import torch
    from triport.weights.commands.convert import convert

    begin, used = time.perf_counter(), time.process_time()
    if name.startswith("copy"):
        copy(source, target, name == "copy-settled")
    elif name == "floor":
        floor(source)
    elif name == "load-save":
        state = torch.load(source, weights_only=True)["model"]
        safetensors.torch.save_file(state, target)
    elif name.startswith("convert"):
        convert(source, target, heads=heads, decoder_heads=16)
    else:
        tree = read(source).tree
        write(target, tree.get("model", tree), name)
    seconds, used = time.perf_counter() - begin, time.process_time() - used
    status = Path("/proc/self/status").read_text()
    print(seconds, used, int(status.split("VmHWM:")[1].split()[0]) * 1024)


Figures = tuple[float, float, float]  # seconds, processor seconds, peak bytes


def measure(name: str, source: Path, heads: int) -> Figures:
    """Run one task in a fresh process; return seconds, processor seconds and peak bytes."""
    target = source.with_name(f"target{TASKS[name][1]}")
    command = [sys.executable, __file__, "--task", name, "--path", str(source), "--target", str(target)]
    command += ["--heads", str(heads)]
    out = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    for path in source.parent.glob("target*"):
        put_away(path)
    seconds, used, peak = map(float, out.stdout.split())
    return seconds, used, peak


def put_away(target: Path) -> None:
    """Delete a file; empty a folder's files and rename it, to be deleted at the end.

    ext4 without a journal looks for a free inode one by one among those that were deleted within five minutes, and the
    next folder of 300 files would pay for that.
    """
    if not target.is_dir():
        target.unlink()
        return
    for path in target.rglob("*"):
        if path.is_file():
            os.truncate(path, 0)
    target.rename(target.with_name(f"emptied-{time.monotonic_ns()}"))


def beside_a_copy(name: str, source: Path, heads: int) -> tuple[Figures, Figures]:
    """The figures of a task, and of a copy made just before it; an untimed copy comes before each."""
    measure("copy-settled", source, heads)
    copied = measure("copy-settled", source, heads)
    return measure(name, source, heads), copied


def main() -> None:
    """Make the checkpoint, run all tasks in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each task is run")
    parser.add_argument("--model", choices=MODELS, default="large", help="MAE's ViT-L, or a ViT-B classifier")
    parser.add_argument("--source", choices=(".pth", ".safetensors"), default=".safetensors", help="form of the source")
    parser.add_argument("--folder", type=Path, default=None, help="where to write; needs 3 GB")
    parser.add_argument("--only", nargs="+", choices=TASKS, metavar="TASK", help=f"some of {', '.join(TASKS)}")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--heads", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--target", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        task(options.task, options.path, options.target, options.heads)
        return
    heads = MODELS[options.model][2]
    if options.folder is not None:
        Path(options.folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source = Path(folder, f"source{options.source}")
        make(source, options.model)
        all_shapes = shapes(options.model).values()
        largest = max(int(np.prod(shape)) for shape in all_shapes) * DTYPES["float32"].itemsize
        print(f"{len(all_shapes)} arrays, {source.stat().st_size / 1e9:.2f} GB, the largest {largest / 1e6:.1f} MB")
        names = [name for name in TASKS if name in (options.only or TASKS)]
        names = [name for name in names if name != "load-save" or (_has_torch() and source.suffix == ".pth")]
        rounds = [{name: beside_a_copy(name, source, heads) for name in names} for _ in range(options.rounds)]
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
    print(f"start of Python and imports of `triport convert`: {started():.2f} processor seconds")


def started() -> float:
    """Processor seconds of a process that imports what `convert` needs, the median of three."""
    found = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", "import triport.weights.commands.command"], check=True, cwd=ROOT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(found)


def _has_torch() -> bool:
    """Whether torch can be imported here."""
    return subprocess.run([sys.executable, "-c", "import torch"], capture_output=True).returncode == 0


if __name__ == "__main__":
    main()
