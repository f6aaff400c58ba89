"""The steps that `triport parity record --model` takes: batches of a file, the loss, the framework's own optimizer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triport.core.errors import UserError
from triport.parity_tests.tool.foreign import frameworks
from triport.parity_tests.tool.foreign.recording import Recorder


def batch(path: Path, step: int, precision: str) -> dict[str, NDArray]:
    """The arrays of a step: "step<i>/name" where the file has steps (their number repeats), else all."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}.") from None
    steps = sorted({int(name[4:].partition("/")[0]) for name in arrays if name.startswith("step") and "/" in name})
    if steps:
        prefix = f"step{steps[step % len(steps)]}/"
        arrays = {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
    saved = {name: a for name, a in arrays.items() if a.dtype.kind in "iufb" and a.ndim}
    if not saved:
        raise UserError(f"{path} holds no array of numbers.")
    return {
        name: a.astype(precision if a.dtype.kind == "f" else np.int64 if a.dtype.kind in "iu" else bool)
        for name, a in saved.items()
    }


def trained(
    model: Any,
    framework: frameworks.Framework,
    batches: Sequence[Mapping[str, NDArray]],
    loss: Callable[..., Any],
    how: tuple[str | None, float, float, float],
) -> Recorder:
    """Train for as many steps as there are batches, recorded. how: optimizer or None, lr, weight decay, momentum."""
    parameters = [p for p in model.parameters() if framework.needs_gradient(p)]
    kind, *numbers = how
    optimizer = framework.optimizer(parameters, kind, *numbers) if kind and parameters else None
    recorder = Recorder(model)
    for i, arrays in enumerate(batches):
        recorder.arrays |= {f"input/{i}/{name}": array for name, array in arrays.items()}
    recorder.begin()
    try:
        for arrays in batches:
            tensors = {name: framework.tensor(array) for name, array in arrays.items()}
            positional, named = fed(model, tensors)
            value = loss(model(*positional, **named), tensors)
            if parameters:
                value.backward()
            if optimizer is not None:
                optimizer.step()
            recorder.step(value)
            for parameter in parameters:
                _forget(parameter)
    finally:
        recorder.end()
    return recorder


def _forget(parameter: Any) -> None:
    """Forget a parameter's gradient."""
    clear = getattr(parameter, "clear_gradient", None)
    if clear is not None:
        clear(False)
    else:
        parameter.grad = None


def fed(model: Any, tensors: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """What a model is called with: arrays named as its parameters, else the first one alone."""
    try:
        wanted = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        wanted = {}  # type: ignore[assignment]
    named = {name: tensor for name, tensor in tensors.items() if name in wanted}
    if named:
        return [], named
    return [next(iter(tensors.values()))], {}


def weighted_sum(framework: frameworks.Framework) -> Callable[[Any, Any], Any]:
    """The loss where none is given: every output times fixed draws, so that no gradient cancels; their mean."""

    def loss(output: Any, tensors: Any) -> Any:
        total = None
        for place, tensor in enumerate(_outputs(framework, output)):
            array = framework.array(tensor)
            draws = np.random.Generator(np.random.Philox(place)).standard_normal(array.shape).astype(array.dtype)
            part = (tensor * framework.tensor(draws)).mean()
            total = part if total is None else total + part
        if total is None:
            raise UserError("the model gives no tensor: --loss names a function that makes a loss of what it gives.")
        return total

    return loss


def _outputs(framework: frameworks.Framework, value: Any) -> list[Any]:
    if framework.is_tensor(value):
        return [value]
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else []
    return [tensor for part in inside for tensor in _outputs(framework, part)]
