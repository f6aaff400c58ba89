"""`triport parity record --model`: trains anyone's model for a few steps on given inputs and records what it computes.

    python -m triport.parity_tests.tool.foreign.record ...      in the interpreter that has the model's framework

Imports numpy and safetensors alone, so that it runs where the model does.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from triport import environments
from triport.core.errors import UserError
from triport.core.options import Parser, positive_number
from triport.parity_tests.tool.foreign import files, frameworks, kinds, steps
from triport.parity_tests.tool.foreign.recording import round_eps
from triport.parity_tests.tool.foreign.weights import copy_weights, read_names

PRECISIONS = ("float64", "float32")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
THERE = "TRIPORT_PARITY_THERE"  # set in the process that was started in the model's interpreter


def parser() -> Parser:
    """The options."""
    found = Parser(
        prog="triport parity record --model", description="Record what any model computes.", allow_abbrev=False
    )
    add = found.add_argument
    add("--model", required=True, metavar="MODULE:NAME", help="a function without arguments that makes the model, or "
        "FILE.py:NAME")  # fmt: skip
    add("--inputs", required=True, type=Path, metavar="FILE", help="arrays, .npz: those named as parameters of the "
        "model's forward are passed by name, else the first one")  # fmt: skip
    add("--loss", metavar="MODULE:NAME", help="a function (output, batch) that gives the loss; batch: the arrays of "
        "--inputs as tensors, by name")  # fmt: skip
    add("--optimizer", choices=("sgd", "adamw"), help="the framework's own (none: weights stay)")
    add("--lr", type=float, default=1e-3, help="learning rate (0.001)")
    add("--weight-decay", type=float, default=0.0, help="(0)")
    add("--momentum", type=float, default=0.9, help="of sgd (0.9)")
    add("--steps", type=positive_number, default=1, metavar="N", help="(1)")
    add("--backend", required=True, help="torch, paddle or oneflow")
    add("--python", metavar="PATH", help="the interpreter that has framework and model (the framework's environment)")
    add("--precision", choices=PRECISIONS, default="float64", help="(float64)")
    add("--eval", action="store_true", help="evaluation mode")
    add("--no-dropout", action="store_true", help="set the p of every dropout to 0")
    add("--weights", type=Path, metavar="RECORD", help="begin with the weights that another record began with")
    add("--names", type=Path, metavar="FILE", help="JSON: names in that record to names in this model")
    add("--seed", type=int, default=0, metavar="N", help="of the framework's generator, before the model is made (0)")
    add("--threads", type=positive_number, default=1, metavar="N", help="of the math library (1: sums in fixed order)")
    add("-o", "--out", required=True, type=Path, metavar="FILE", help="the record, .safetensors")
    return found


def main(argv: Sequence[str]) -> int:
    """Record, here or in the interpreter that has the framework. Returns the exit code."""
    options = parser().parse_args(list(argv))
    environments.known(options.backend)
    if not options.inputs.is_file():
        raise UserError(f"no file {options.inputs}.")
    if os.environ.get(THERE) == "1":
        return run(options, argv)
    return start(interpreter(options.backend, options.python), argv, options.threads)


def interpreter(backend: str, given: str | None) -> Path:
    """The interpreter to record in. UserError where it cannot be."""
    if given is None:
        return environments.require(backend)
    path = Path(given).expanduser()
    path = path / "bin" / "python" if path.is_dir() else path
    if not path.is_file() or not os.access(path, os.X_OK):
        raise UserError(f"--python {given}: no interpreter there.")
    return path.absolute()


def start(
    python: Path,
    argv: Sequence[str],
    threads: int = 1,
    more: Mapping[str, str] | None = None,
    where: Path | None = None,
) -> int:
    """Record in a process of an interpreter; its messages are passed on. Returns the exit code."""
    variables = {**os.environ, **dict.fromkeys(THREADS, str(threads)), **(more or {}), THERE: "1"}
    command = [str(python), "-m", "triport.parity_tests.tool.foreign.record", *argv]
    done = subprocess.run(command, env=environments.with_project(variables), cwd=where, check=False)
    if done.returncode < 0:
        raise UserError(f"the process that recorded was ended by signal {-done.returncode}.")
    return done.returncode


# ---------------------------------------------------------------- in the model's interpreter
def run(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Record in this interpreter."""
    framework = started(options.backend, options.threads)
    framework.seed(options.seed)
    model = made(options.model, framework)
    model = framework.to_precision(model, options.precision) or model
    prepare(model, framework, options)
    if options.weights is not None:
        names = read_names(options.names)
        copied = copy_weights(model, options.weights, names)
        print(f"{len(copied)} arrays copied from {options.weights}")
    batches = [steps.batch(options.inputs, i, options.precision) for i in range(options.steps)]
    loss = loaded(options.loss) if options.loss else steps.weighted_sum(framework)
    how = (options.optimizer, options.lr, options.weight_decay, options.momentum)
    if options.precision == "float64":
        round_eps(model)
    recorder = steps.trained(model, framework, batches, loss, how)
    recorder.about = {
        "command": list(argv),
        "folder": str(Path.cwd()),
        "optimizer": {
            "kind": options.optimizer, "lr": options.lr, "decay": options.weight_decay, "momentum": options.momentum,
        } if options.optimizer else None,
    }  # fmt: skip
    recorder.write(options.out)
    size, about = options.out.stat().st_size / 1e6, recorder.description()
    print(
        f"{options.out}: {size:.1f} MB, {about['model']} on {files.TITLES[options.backend]} {about['version']}, "
        f"{options.precision}, {options.steps} steps, {len(about['modules'])} modules"
    )
    return 0


def started(backend: str, threads: int) -> frameworks.Framework:
    """The framework, imported as the backends import it."""
    try:
        if backend != "torch":
            importlib.import_module(f"triport.backends.{backend}.runtime")
        library = importlib.import_module(backend)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{sys.executable} cannot import {error.name}; --python PATH names another interpreter."
        ) from None
    if backend == "torch":
        library.set_num_threads(threads)
    return frameworks.FRAMEWORKS[backend](library)


def loaded(name: str) -> Any:
    """What "module:name" or "file.py:name" names. UserError where there is nothing."""
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise UserError(f"'{name}': write MODULE:NAME or FILE.py:NAME.")
    sys.path.insert(0, str(Path.cwd()))
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            assert spec is not None and spec.loader is not None
            sys.path.insert(0, str(Path(place).resolve().parent))
            module = importlib.util.module_from_spec(spec)
            sys.modules[Path(place).stem] = module
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
        return getattr(module, attribute)
    except (ImportError, FileNotFoundError) as error:
        raise UserError(f"cannot import {place}: {error}.") from None
    except AttributeError:
        raise UserError(f"{place} has no '{attribute}'.") from None


def made(name: str, framework: frameworks.Framework) -> Any:
    """The model that a name makes. UserError where it is not one of the framework's."""
    model = loaded(name)
    if isinstance(model, type) or not hasattr(model, "parameters"):
        model = model()
    if frameworks.of(model).name != framework.name:
        raise UserError(f"{name} is a model of {frameworks.of(model).name}, not of {framework.name}.")
    return model


def prepare(model: Any, framework: frameworks.Framework, options: argparse.Namespace) -> None:
    """Set the mode and see to dropouts, which draw from the framework's own generator. UserError where they would."""
    model.eval() if options.eval else model.train()
    for name, module in framework.modules(model):
        known = kinds.describe(module)
        if options.eval or known["kind"] not in ("dropout", "attention"):
            continue
        place, field = ("drop_prob" if hasattr(module, "drop_prob") else "p"), known["settings"]
        place = "dropout" if known["kind"] == "attention" else place
        if not field.get("p") and not field.get("dropout"):
            continue
        if not options.no_dropout:
            raise UserError(
                f"{name} drops at random, differently on each framework: --no-dropout sets it to 0, --eval skips it."
            )
        setattr(module, place, 0.0)


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
    except UserError as error:
        print(f"triport: error: {error}", file=sys.stderr)
        code = 2
    sys.stdout.flush()
    sys.exit(code)
