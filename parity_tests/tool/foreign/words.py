"""A comparison of two records in words: other settings, what is allowed for, what the first departure looks like."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from triport.parity_tests.tool.align import relation
from triport.parity_tests.tool.foreign import files, formulas
from triport.parity_tests.tool.foreign.files import Record
from triport.parity_tests.tool.foreign.formulas import base
from triport.parity_tests.tool.foreign.matching import Match

if TYPE_CHECKING:
    from triport.parity_tests.tool.foreign.comparing import Comparison, Line


def settings(a: Record, b: Record, match: Match) -> Iterator[str]:
    """Where matched modules were given other settings."""
    for name in match.how:
        targets = match.calls.get(name, [])
        if len(targets) != 1:
            continue
        ours, theirs = a.modules[name]["settings"], b.modules[base(targets[0])]["settings"]
        for key in ours:
            if key in theirs and ours[key] != theirs[key]:
                yield f"{name}: {key} is {ours[key]} in A and {theirs[key]} in B"
    for key in ("mode", "optimizer"):
        if a.about.get(key) != b.about.get(key):
            yield f"{key}: {a.about.get(key)} in A and {b.about.get(key)} in B"


def notes(a: Record, b: Record) -> Iterator[str]:
    if a.about["backend"] != b.about["backend"] and any(m["kind"] == "batch norm" for m in a.modules.values()):
        yield ("statistics of batch norms are held to each framework's own rule in the first step, and to none later: "
               "Paddle takes a batch's biased variance, Paddle and OneFlow the momentum in float32")  # fmt: skip
    backends = {a.about["backend"], b.about["backend"]}
    rounded = [record.about.get("eps") == "float32" for record in (a, b)]
    normed = any("eps" in m["settings"] for record in (a, b) for m in record.modules.values())
    if normed and not files.coarse(a, b) and ((len(backends) > 1 and not all(rounded)) or rounded[0] != rounded[1]):
        yield ("norms have an eps in float64 on one side and in float32 on the other, up to 1e-8 of what they give: "
               "triport.parity.round_eps(model) before both makes it the same")  # fmt: skip
    if "oneflow" in backends and len(backends) > 1 and max(a.steps, b.steps) > 1:
        yield ("OneFlow's optimizers take their settings in float32: after the first step each update is held to its "
               "rule on its own gradients, and nothing else")  # fmt: skip
    if files.coarse(a, b):
        yield "in float32 the first step and every update are held; --precision float64 shows more"


def explain(result: Comparison) -> list[str]:
    """Sentences about the first departure, the surest first."""
    assert result.first is not None
    line, out = result.lines[result.first], list[str]()
    a, b = result.a, result.b
    module = base(line.name.removesuffix("/input"))
    module = module if module in a.modules else line.name.rpartition(".")[0]
    out += [f"{text}." for text in result.settings if text.startswith(f"{module}: ")]
    if line.stage == "initial values":
        out.append("the weights differ: --copy-weights carries those of A over to B.")
    if line.stage in ("initial values", "inputs", "forward", "backward", "gradients"):
        out += _relation(result, line)
    if line.stage == "forward" and line.name.endswith("/input"):
        out.append(f"it is computed before {module}, outside of any module.")
    elif line.stage == "forward" and " + " not in line.other:
        for letter, record, call in (("A", a, line.name), ("B", b, line.other)):
            known, miss = record.modules[base(call)], formulas.missed(record, call)
            if miss is not None and miss > line.allowed:
                of = "" if known["exact"] else f", which {known['class']} may replace,"
                out.append(f"{letter} misses the formula of its {known['kind']}{of} on its own input by {miss:.1e}.")
            elif miss is not None:
                out.append(f"{letter} agrees with the formula of its {known['kind']} on its own input ({miss:.0e}).")
    if line.note:
        out.append(f"{line.note}.")
    return out


def _relation(result: Comparison, line: Line) -> list[str]:
    """How one array comes from the other, where that is simple."""
    kinds = {"forward": "out/", "backward": "grad/", "initial values": "first/", "inputs": f"input/{line.step}/",
             "gradients": f"step{line.step}/grad/"}  # fmt: skip
    prefix, name, other = kinds[line.stage], line.name, line.other
    if name.endswith("/input"):
        prefix, name, other = "in/", name.removesuffix("/input"), other.removesuffix("/input")
    mine, theirs = result.a.arrays.get(prefix + name), result.b.arrays.get(prefix + other)
    if mine is None or theirs is None or mine.shape != theirs.shape:
        return []
    words = relation(mine, theirs)
    return [f"{words}."] if words else []
