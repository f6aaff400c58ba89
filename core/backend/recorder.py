"""Records what passes through the modules of a model, whatever its framework."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from triport.core.backend.tensors import Tensor, Tensors

_open: list[object] = []  # a mark for each recording under way


def under_way() -> bool:
    """Whether outputs are being recorded, so that nobody may change one in place."""
    return bool(_open)


@contextmanager
def recording(model: Any, tensors: Tensors, gradients: bool = False) -> Iterator[dict[str, Tensor]]:
    """Within, modules leave their outputs in what is given, in order.

    They are "layers/<module>", at a second call "layers/<module>@2". Modules without children leave their input as
    well, "layers/<module>/input", where it is not the very output of another. With `gradients` these tensors retain
    theirs. Each module's `forward` is wrapped for the time being: not every framework's hooks can be removed.
    """
    seen: dict[str, Tensor] = {}
    calls: dict[str, int] = {}

    def note(name: str, value: object) -> None:
        if isinstance(value, tensors.kind):
            if gradients:
                tensors.retain_gradient(value)
            seen[name] = value

    def watch(name: str, module: Any) -> Callable[..., Any]:
        forward = module.forward

        def watched(*given: Any, **named: Any) -> Any:
            output = forward(*given, **named)
            calls[name] = calls.get(name, 0) + 1
            call = f"@{calls[name]}" if calls[name] > 1 else ""
            if not any(True for _ in module.children()) and not any(given[0] is x for x in seen.values()):
                note(f"layers/{name}/input{call}", given[0])
            note(f"layers/{name}{call}", output)
            return output

        return watched

    with ExitStack() as stack:
        for name, module in list(tensors.modules(model)):
            stack.enter_context(_replaced(module, watch(name, module)))
        _open.append(seen)
        stack.callback(_open.pop)
        yield seen


@contextmanager
def _replaced(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """Within, the module has this `forward` of its own; after it the one of its class, or whatever it had."""
    before = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = before
