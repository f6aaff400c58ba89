"""Records what a model computes while its owner's own code trains it: `with recording(model, "a.safetensors")`."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triport.core.errors import UserError
from triport.core.version import VERSION
from triport.parity_tests.tool.foreign import files, frameworks, kinds

PACKAGES = ("numpy", "torch", "paddlepaddle", "paddlepaddle-gpu", "oneflow", "timm", "torchvision", "safetensors")


class Recorder:
    """Collects what passes through a model. Layers and gradients of their outputs are those of the first step."""

    def __init__(self, model: Any) -> None:
        """Nothing is hooked before `begin`. UserError for what is not a module."""
        self.model, self.framework = model, frameworks.of(model)
        self.named = {"": model, **dict(self.framework.modules(model))}
        self.arrays: dict[str, NDArray] = {f"first/{name}": array for name, array in self.values().items()}
        self.inputs: dict[str, str] = {}  # call -> key of the array that it was fed
        self.about: dict[str, Any] = {}  # added to what the file says
        self.steps = 0
        self._order: dict[str, list[str]] = {}  # calls whose gradients are awaited, in order of computation
        self._gradients: dict[str, NDArray] = {}
        self._parameter_gradients: dict[str, NDArray] = {}
        self._seen: list[tuple[Any, str]] = []  # output tensors, kept so that their identity stays theirs
        self._calls: dict[str, int] = {}
        self._removes: list[Callable[[], object]] = []
        self._moved = False

    # ------------------------------------------------------------ what the owner calls
    def step(self, loss: Any = None) -> None:
        """End a step: call it after the optimizer's. `loss`: a tensor or a number."""
        i = self.steps
        if loss is not None:
            value = self.framework.array(loss) if self.framework.is_tensor(loss) else np.array(loss)
            self.arrays[f"step{i}/loss"] = np.asarray(value, np.float64).reshape(())
        self.arrays |= {f"step{i}/grad/{name}": array for name, array in self.gradients().items()}
        self.arrays |= {f"step{i}/after/{name}": array for name, array in self.values().items()}
        if i == 0:
            self.arrays |= {f"grad/{call}": array for call, array in reversed(self._gradients.items())}
            self._unhook()
            self._hook_parameters()
        self._parameter_gradients.clear()
        self.steps, self._moved = i + 1, False

    def values(self) -> dict[str, NDArray]:
        """Parameters and buffers, named and laid out as PyTorch does."""
        out: dict[str, NDArray] = {}
        for name, module in self.named.items():
            parameters, buffers = self.framework.own_tensors(module)
            own = {key: self.framework.array(tensor) for key, tensor in {**parameters, **buffers}.items()}
            out |= {_dotted(name, key): array for key, array in kinds.neutral(module, own).items()}
        return out

    def gradients(self) -> dict[str, NDArray]:
        """Gradients of the parameters as the optimizer saw them; where they are cleared, of the last backward pass."""
        out: dict[str, NDArray] = {}
        for name, module in self.named.items():
            own: dict[str, NDArray] = {}
            for key, parameter in self.framework.own_tensors(module)[0].items():
                noted = self._parameter_gradients.get(_dotted(name, key))
                found = None if parameter.grad is None else self.framework.array(parameter.grad)
                if found is None or (noted is not None and not found.any()):
                    found = noted
                if found is not None:
                    own[key] = found
            out |= {_dotted(name, key): array for key, array in kinds.neutral(module, own).items()}
        return out

    # ------------------------------------------------------------ hooks
    def begin(self) -> None:
        """Hook every module."""
        for name, module in self.named.items():
            if name:
                self._removes.append(self.framework.before(module, self._before(name, module)))
                self._removes.append(self.framework.after(module, self._after(name)))
        self._hook_parameters()

    def end(self) -> None:
        """Remove every hook."""
        self._unhook()
        self._seen.clear()

    def _unhook(self) -> None:
        for remove in self._removes:
            remove()
        self._removes.clear()
        self._seen.clear()

    def _hook_parameters(self) -> None:
        self._removes.append(self.framework.after(self.model, self._whole))
        for name, module in self.named.items():
            for key, parameter in self.framework.own_tensors(module)[0].items():
                if self.framework.needs_gradient(parameter):
                    note = self._noting(self._parameter_gradients, _dotted(name, key))
                    self._removes.append(self.framework.on_gradient(parameter, note))

    def _noting(self, where: dict[str, NDArray], key: str) -> Callable[[Any], None]:
        def note(gradient: Any) -> None:
            where[key] = self.framework.array(gradient)

        return note

    def _whole(self, module: Any, inputs: Any, output: Any) -> None:
        self._moved = True
        if self.steps == 0:
            for part, tensor in self._tensors(output):
                key = f"output{part}"
                self.arrays.setdefault(f"out/{key}", self.framework.array(tensor))

    def _before(self, name: str, module: Any) -> Callable[..., None]:
        leaf = not self.framework.children(module)
        kind = kinds.describe(module)["kind"]
        wanted, attention = leaf or kind != "", kind == "attention"  # whose formula knows self-attention alone

        def before(_: Any, inputs: Any) -> None:
            self._calls[name] = self._calls.get(name, 0) + 1
            tensors = [tensor for _, tensor in self._tensors(inputs)]
            given = tensors[0] if tensors else None
            if given is None or not wanted or (attention and any(tensor is not given for tensor in tensors)):
                return
            call, array = self._call(name), self.framework.array(given)
            for tensor, key in reversed(self._seen):  # the same object may have been changed in place
                if tensor is given and np.array_equal(self.arrays[key], array):
                    self.inputs[call] = key
                    return
            self.arrays[f"in/{call}"] = array
            self._seen.append((given, f"in/{call}"))

        return before

    def _after(self, name: str) -> Callable[..., None]:
        def after(_: Any, inputs: Any, output: Any) -> None:
            call = self._call(name)
            for part, tensor in self._tensors(output):
                key = f"{call}{part}"
                self.arrays[f"out/{key}"] = self.framework.array(tensor)
                self._seen.append((tensor, f"out/{key}"))
                if self.framework.needs_gradient(tensor):
                    note = self._noting(self._gradients, key)
                    self._removes.append(self.framework.on_gradient(tensor, note))

        return after

    def _call(self, name: str) -> str:
        """The name of a module's present call."""
        count = self._calls[name]
        return name if count == 1 else f"{name}@{count}"

    def _tensors(self, value: Any) -> list[tuple[str, Any]]:
        """The tensors in an output, with "" for one alone and "[0]", "[key]" for several in tuples and dicts."""
        found = list(self._inside(value, ""))
        return [("", found[0][1])] if len(found) == 1 else found

    def _inside(self, value: Any, part: str) -> Iterator[tuple[str, Any]]:
        if self.framework.is_tensor(value):
            yield part, value
        elif isinstance(value, Mapping):
            for key, inside in value.items():
                yield from self._inside(inside, f"{part}[{key}]")
        elif isinstance(value, (list, tuple)):
            for place, inside in enumerate(value):
                yield from self._inside(inside, f"{part}[{place}]")

    # ------------------------------------------------------------ the file
    def description(self) -> dict[str, Any]:
        """What the file says besides the arrays."""
        trained = [
            array.dtype for name, array in self.arrays.items() if array.dtype.kind == "f" and name[:5] == "first"
        ]
        modules = {name: kinds.describe(module) for name, module in self.named.items() if name}
        every = [eps for module in self.named.values() for eps in kinds.eps_of(module).values()]
        rounded = bool(every) and all(eps == float(np.float32(eps)) for eps in every)
        for known in modules.values() if rounded else ():
            if "eps" in known["settings"]:
                known["settings"]["eps"] = kinds.shortest(known["settings"]["eps"])
        return {
            "format": files.FORMAT,
            "backend": self.framework.name,
            "version": self.framework.version,
            "python": platform.python_version(),
            "interpreter": sys.executable,
            "packages": {"triport": VERSION, **_packages()},
            "precision": max((str(dtype) for dtype in trained), key=lambda text: text, default="float32"),
            "steps": self.steps,
            "model": type(self.model).__name__,
            "mode": "train" if self.model.training else "eval",
            "modules": modules,
            "eps": "float32" if rounded else "as given",
            "inputs": self.inputs,
            **self.about,
        }

    def write(self, path: Path) -> None:
        """Write what was recorded. UserError where the model was not called."""
        if self._moved or self.steps == 0:  # a step that was not ended by the owner
            if not self._calls and not self._moved:
                raise UserError(f"{path}: nothing was recorded, since the model was not called within `recording`.")
            self.step()
        files.write(path, self.description(), self.arrays)


def _dotted(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _packages() -> dict[str, str]:
    """The versions of what may change numbers."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def round_eps(model: Any) -> None:
    """Give every norm of a model its eps as float32 has it: 9.999999747e-06 for 1e-05.

    In float64 the kernels of Paddle and OneFlow take eps in float32, which is up to 1e-8 of a normalised value. With
    the same number on both sides two frameworks agree to 1e-14. `triport parity record --model` does this in float64.
    """
    framework = frameworks.of(model)
    for module in (model, *(module for _, module in framework.modules(model))):
        for name, value in kinds.eps_of(module).items():
            setattr(module, name, float(np.float32(value)))


@contextmanager
def recording(model: Any, path: str | Path) -> Iterator[Recorder]:
    """Record what `model` computes within, and write it to `path`; hooks go also after an exception, the file does not.

        with recording(model, "a.safetensors") as record:
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            record.step(loss)        # once a step; without it the whole block is one step

    model: a module of PyTorch, Paddle or OneFlow, called as usual. Layers are recorded in the first step, losses,
    parameters and their gradients in each. UserError where the model was not called or `path` cannot be written.
    """
    recorder = Recorder(model)
    recorder.begin()
    try:
        yield recorder
        recorder.write(Path(path))
    finally:
        recorder.end()
