"""`triport doctor`: which frameworks, devices and launchers are usable here, and what to do about the rest."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from triport import environments, place
from triport.core.errors import UserError
from triport.core.options import Parser

KERNELS = "from triport.core.augment import native; print(native.state())"
TIMEOUT = 300  # seconds a framework gets to import
# Asked in the framework's own interpreter; the answer is the last line of its output.
QUESTIONS = {
    "torch": """
import json, torch
torch.ones(2, 2) @ torch.ones(2, 2)
cuda = torch.cuda.is_available()
print(json.dumps({"version": torch.__version__, "threads": torch.get_num_threads(),
    "devices": ["cpu"] + ["mps"] * torch.backends.mps.is_available()
        + [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count() if cuda else 0)],
    "launcher": "torchrun" if torch.distributed.is_available() else None}))
""",
    "paddle": """
import importlib.util, json, paddle
paddle.ones([2, 2]) @ paddle.ones([2, 2])
count = paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0
print(json.dumps({"version": paddle.__version__,
    "devices": ["cpu"] + [f"gpu:{i} {paddle.device.cuda.get_device_name(i)}" for i in range(count)],
    "launcher": "paddle.distributed.launch" if importlib.util.find_spec("paddle.distributed.launch") else None}))
""",
    "oneflow": """
import importlib.util, json, oneflow
oneflow.ones(2, 2) @ oneflow.ones(2, 2)
cuda = oneflow.cuda.is_available()
try:
    import libai
    extra = "LiBai " + getattr(libai, "__version__", "0.1.1")
except Exception as error:
    extra = None
print(json.dumps({"version": oneflow.__version__, "libai": extra,
    "devices": ["cpu"] + [f"cuda:{i}" for i in range(oneflow.cuda.device_count() if cuda else 0)],
    "launcher": "oneflow.distributed.launch" if importlib.util.find_spec("oneflow.distributed.launch") else None}))
""",
}


def main(argv: Sequence[str]) -> int:
    """Run `triport doctor`; exit code 0 if any framework is usable, else 1."""
    p = Parser(prog="triport doctor", description="Check what works on this machine.")
    p.add_argument("--json", action="store_true", help="for programs")
    options = p.parse_args(list(argv))
    report: dict[str, Any] = {"machine": machine(), "kernels": kernels(), "frameworks": frameworks()}
    print(json.dumps(report, indent=1) if options.json else text(report))
    return 0 if any(found["usable"] for found in report["frameworks"].values()) else 1


def machine() -> dict[str, Any]:
    """Return what the machine offers; memory and disk in bytes, None where unknown."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    disk = next(path for path in (environments.home(), *environments.home().parents) if path.exists())
    total, available = memory()
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": processor(),
        "cores": cores,
        "memory": total,
        "memory_available": available,
        "disk_free": shutil.disk_usage(disk).free,
        "python": platform.python_version(),
        "interpreter": sys.executable,
        "environments": str(environments.home()) if environments.CHECKOUT else None,
        "nvidia_driver": shutil.which("nvidia-smi") is not None,
    }


def processor() -> str:
    """Return the processor's name, and whether it has AVX2 and AVX-512."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    flags = facts.get("flags", "").split()
    known = [
        name for flag, name in (("avx2", "AVX2"), ("avx512f", "AVX-512"), ("avx512_bf16", "bfloat16")) if flag in flags
    ]
    return " ".join([facts.get("model name", platform.machine()), *known])


def memory() -> tuple[int | None, int | None]:
    """Return the memory in all and what is available, in bytes."""
    try:
        lines = [line.split() for line in Path("/proc/meminfo").read_text().splitlines()]
        facts = {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines}
        return facts["MemTotal"], facts["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), None
    except (ValueError, OSError):
        return None, None


def kernels() -> str:
    """Return "compiled", or why the loader's C code is not and Pillow does its work."""
    try:
        command = [str(environments.base_python()), "-c", KERNELS]
    except UserError as error:
        return f"nothing here can load them: {error}"
    answer = subprocess.run(command, capture_output=True, text=True, env=environments.with_project(os.environ))
    return (answer.stdout.strip() or answer.stderr.strip() or "unknown").splitlines()[-1]


def frameworks() -> dict[str, dict[str, Any]]:
    """Ask all frameworks at once, each in its own interpreter."""
    with ThreadPoolExecutor() as pool:
        return dict(zip(environments.FRAMEWORKS, pool.map(ask, environments.FRAMEWORKS)))


def ask(framework: str) -> dict[str, Any]:
    """Return what is known of a framework: usable, state, interpreter, version, devices, launcher, remedy."""
    state = environments.state(framework)
    interpreter = environments.interpreter(framework)
    found: dict[str, Any] = {"usable": False, "environment": state, "interpreter": str(interpreter or "") or None}
    again = environments.remedy(framework)
    if interpreter is None and (reason := environments.obstacle(framework)):
        return {**found, "trouble": reason, "remedy": "use the other frameworks here"}
    if interpreter is None:
        broken = "its environment is half-made" if state == "half-made" else "it is not set up"
        return {**found, "trouble": broken, "remedy": again}
    try:
        found.update(answer(framework, interpreter), usable=True)
    except UserError as error:
        remove = f"remove {environments.home() / framework}, then " if "import" in str(error) else ""
        return {**found, "trouble": str(error), "remedy": remove + again}
    if state == "outdated" and interpreter == environments.python(framework):
        return {**found, "trouble": "its lock file has changed since", "remedy": again}
    if framework == "oneflow" and found.get("libai") is None:
        return {**found, "trouble": "without LiBai (it needs a C++ compiler to be built)", "remedy": again}
    return found


def answer(framework: str, interpreter: Path) -> dict[str, Any]:
    """Import the framework in `interpreter` and multiply two matrices. Returns version, devices, launcher.

    Raises UserError with what went wrong, in a few words.
    """
    quiet = {"GLOG_minloglevel": "3", "PYTHONWARNINGS": "ignore"}
    variables = {**place.variables(place.Place(framework, interpreter)), **quiet}
    command = [str(interpreter), "-c", QUESTIONS[framework]]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=variables)
    except subprocess.TimeoutExpired:
        raise UserError(f"no answer within {TIMEOUT} s") from None
    except OSError as error:
        raise UserError(f"does not start: {error}") from error
    if done.returncode:
        raise UserError(
            f"does not import: {(done.stderr.strip().splitlines() or [f'exit code {done.returncode}'])[-1]}"
        )
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def text(report: dict[str, Any]) -> str:
    """Return the report for people."""
    here = report["machine"]
    places = f"environments in {here['environments']}" if here["environments"] else "an installed package"
    lines = [
        f"{here['system']}; {here['processor']}; {here['cores']} cores",
        f"memory {size(here['memory'])}, {size(here['memory_available'])} available; "
        f"disk {size(here['disk_free'])} free",
        f"Python {here['python']} ({here['interpreter']}); {places}",
        f"loader: pixel kernels {report['kernels']}" + ("" if report["kernels"] == "compiled" else "; Pillow is used"),
        "",
    ]
    for framework, found in report["frameworks"].items():
        title = environments.TITLES[framework]
        if found["usable"]:
            parts = [
                f"{title} {found['version']}",
                *filter(None, [found.get("libai")]),
                f"on {', '.join(found['devices'])}",
            ]
            launcher = (
                f"several processes: {found['launcher']}"
                if found["launcher"]
                else "one process only: it has no launcher"
            )
            lines += [f"  {framework:<9}works   {' '.join(parts)}; {launcher}", f"{'':<19}{found['interpreter']}"]
        else:
            word = "broken" if found["interpreter"] else "absent"
            lines.append(f"  {framework:<9}{word}  {title}: {found['trouble']}")
        if found.get("remedy"):
            trouble = f"{found['trouble']}; " if found["usable"] else ""
            lines.append(f"{'':<19}{trouble}remedy: {found['remedy']}")
    gpus = any(len(found.get("devices", ())) > 1 for found in report["frameworks"].values())
    if here["nvidia_driver"] and not gpus:
        lines += ["", "There is an NVIDIA driver, but no framework sees a GPU: the environments hold CPU builds."]
    return "\n".join(lines)


def size(count: int | None) -> str:
    """Return bytes in GiB."""
    return "unknown" if count is None else f"{count / 2**30:.1f} GiB"
