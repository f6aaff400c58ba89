"""Facts of the interpreter that runs this file: versions, math libraries, threads, flags. Prints them as JSON.

    python facts.py [torch|paddle|oneflow]

Standard library and the framework alone, so that it runs in any environment, without triport.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import sys
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

PACKAGES = re.compile(
    r"(torch|torchvision|timm|paddlepaddle(-gpu)?|oneflow|numpy|scipy|mkl|intel-openmp|onednn|pillow|transformers|"
    r"triton|nvidia-(cublas|cudnn|cuda-runtime|cufft)\S*)",
    re.IGNORECASE,
)
VARIABLES = re.compile(
    r"(OMP|MKL|KMP|OPENBLAS|GOTO|BLIS|DNNL|ONEDNN|ATEN|TORCH|PYTORCH|FLAGS|PADDLE|ONEFLOW|CUDA|CUBLAS|CUDNN|NVIDIA|XLA|"
    r"GOMP)_\w+|LD_PRELOAD|PYTHONHASHSEED"
)
LIBRARIES = re.compile(
    r"lib(mkl_(core|rt|avx\w*|def)|openblas\w*|blas|lapack|gomp|iomp5|omp|dnnl|mkldnn|mklml\w*|cublas|cudnn|onednn)"
)
FLAGS = ("avx", "avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "sse4_2", "asimd", "sve")
PADDLE_FLAGS = ("FLAGS_cudnn_deterministic", "FLAGS_embedding_deterministic", "FLAGS_use_mkldnn", "FLAGS_use_onednn",
                "FLAGS_cpu_deterministic", "FLAGS_allow_tf32_cublas", "FLAGS_allow_tf32_cudnn",
                "FLAGS_conv_workspace_size_limit", "FLAGS_use_autotune")  # fmt: skip


def facts(framework: str = "") -> dict[str, Any]:
    """All facts, flat: "group.name" -> a JSON value."""
    out: dict[str, Any] = {
        "python.version": platform.python_version(),
        "system.kernel": platform.release(),
        "system.platform": f"{platform.system()} {platform.machine()}",
        "system.libc": " ".join(platform.libc_ver()),
    }
    out |= processor()
    out |= {f"package.{name}": version for name, version in packages().items()}
    if framework:
        out |= of_framework(framework)
    out |= {f"library.{name}": "loaded" for name in libraries()}
    out |= {f"variable.{name}": value for name, value in sorted(os.environ.items()) if VARIABLES.fullmatch(name)}
    return out


def processor() -> dict[str, Any]:
    """Model, instruction sets, cores."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    model = re.search(r"^(?:model name|CPU part)\s*:\s*(.+)$", text, re.MULTILINE)
    words = set(text.split())
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor.model": model[1] if model else platform.processor(),
        "processor.instructions": " ".join(flag for flag in FLAGS if flag in words),
        "processor.cores": bound,
    }


def packages() -> dict[str, str]:
    """Versions of the packages that matter."""
    found = {}
    for distribution in metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower()
        if PACKAGES.fullmatch(name):
            found[name] = distribution.version
    return dict(sorted(found.items()))


def libraries() -> list[str]:
    """Math and thread libraries in this process, by file name without its number."""
    try:
        text = Path("/proc/self/maps").read_text(errors="replace")
    except OSError:
        return []
    names = {Path(line.rpartition(" ")[2]).name for line in text.splitlines() if "/" in line}
    return sorted({re.sub(r"(-[0-9a-f]{6,})|(\.so.*)", "", name) for name in names if LIBRARIES.match(name)})


def of_framework(name: str) -> dict[str, Any]:
    """What a framework says of itself."""
    try:
        library = import_module(name)
    except Exception as error:  # an environment that is broken is a fact as well
        return {"framework.error": f"{type(error).__name__}: {error}"}
    out = {"framework.name": name, "framework.version": str(library.__version__)}
    return out | {"torch": _torch, "paddle": _paddle, "oneflow": _oneflow}[name](library)


def _torch(torch: Any) -> dict[str, Any]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    found: dict[str, Any] = {
        "framework.git": torch.version.git_version,
        "framework.cuda": torch.version.cuda,
        "framework.threads": torch.get_num_threads(),
        "framework.interop threads": torch.get_num_interop_threads(),
        "framework.cpu kernels": _try(torch.backends.cpu.get_cpu_capability),
        "framework.mkl": torch.backends.mkl.is_available(),
        "framework.onednn": torch.backends.mkldnn.is_available(),
        "framework.float32 matmul precision": torch.get_float32_matmul_precision(),
        "framework.tf32 matmul": matmul.allow_tf32,
        "framework.tf32 cudnn": cudnn.allow_tf32,
        "framework.cudnn": cudnn.version(),
        "framework.cudnn deterministic": cudnn.deterministic,
        "framework.cudnn benchmark": cudnn.benchmark,
        "framework.deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "framework.reduced precision sums": matmul.allow_fp16_reduced_precision_reduction,
        "framework.default type": str(torch.get_default_dtype()).rpartition(".")[2],
    }
    build = re.findall(r"(?:Intel\(R\) MKL|Intel\(R\) oneAPI|OpenMP|Intel\(R\) MKL-DNN)[^\n]*", torch.__config__.show())
    found["framework.build"] = "; ".join(build)
    if torch.cuda.is_available():
        found["framework.devices"] = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return found


def _paddle(paddle: Any) -> dict[str, Any]:
    version = paddle.version
    found: dict[str, Any] = {
        "framework.git": version.commit,
        "framework.cuda": _try(version.cuda),
        "framework.cudnn": _try(version.cudnn),
        "framework.mkl": _try(version.mkl),
        "framework.default type": paddle.get_default_dtype(),
        "framework.threads": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    for flag in PADDLE_FLAGS:
        try:
            found[f"framework.{flag}"] = paddle.get_flags(flag)[flag]
        except Exception:  # another version does not know it
            continue
    return found


def _oneflow(flow: Any) -> dict[str, Any]:
    return {
        "framework.git": getattr(flow, "__git_commit__", None),
        "framework.cuda": _try(flow.sysconfig.cuda_version) if hasattr(flow, "sysconfig") else None,
        "framework.default type": str(_try(flow.get_default_dtype)).rpartition(".")[2],
        "framework.tf32 matmul": _try(lambda: flow.backends.cuda.matmul.allow_tf32),
    }


def _try(ask: Any) -> Any:
    """An answer as text or number; None where there is none."""
    try:
        answer = ask()
    except Exception:
        return None
    return answer if isinstance(answer, (bool, int, float, str, type(None))) else str(answer)


if __name__ == "__main__":
    saved = os.dup(1)  # frameworks print while they are imported
    os.dup2(2, 1)
    found = facts(sys.argv[1] if len(sys.argv) > 1 else "")
    ctypes.CDLL(None).fflush(None)
    sys.stdout.flush()
    os.dup2(saved, 1)
    print(json.dumps(found))
