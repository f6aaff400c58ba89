"""A model on its way between layouts: canonical names, the file's arrays, and what is still to happen to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from triport.core.errors import UserError
from triport.weights import transforms
from triport.weights.arrays import Lazy
from triport.weights.canonical import BASE, MOMENTUM, Architecture, Shape, architecture, part
from triport.weights.layouts.layout import Layout, constants, write_name
from triport.weights.model.candidate import Candidate
from triport.weights.model.reading import Only
from triport.weights.model.report import Report


@dataclass(frozen=True)
class Piece:
    """One canonical array: its source arrays and the rearrangements that make it of them ("-" marks an inverse)."""

    shape: Shape
    arrays: tuple[Lazy, ...]
    sources: tuple[str, ...] = ()  # names in the file
    rearrangements: tuple[str, ...] = ()
    done: tuple[str, ...] = ()  # "resampled", "cast", "made": what has happened for good

    def rearranged(self, rearrangements: Iterable[str]) -> Piece:
        """The piece with further rearrangements; one right after its inverse cancels."""
        path = list(self.rearrangements)
        for step in rearrangements:
            if path and path[-1] == f"-{step}":
                path.pop()
            else:
                path.append(step)
        return replace(self, rearrangements=tuple(path))


@dataclass
class Model:
    """Canonical names in the originals' order, and what the file says beside the arrays."""

    pieces: dict[str, Piece]
    architecture: Architecture
    heads: int | None = None
    decoder_heads: int | None = None

    def arrays(self) -> dict[str, Lazy]:
        """Canonical names and arrays, rearranged. UserError where that needs the number of heads and none is known."""
        return {name: self.settle(name, piece)[0] for name, piece in self.pieces.items()}

    def settle(self, name: str, piece: Piece) -> tuple[Lazy, ...]:
        """The arrays of a piece after its rearrangements."""
        arrays = piece.arrays
        for step in piece.rearrangements:
            if step in ("transpose", "-transpose"):
                arrays = tuple(transforms.transpose(a) for a in arrays)
            elif step == "-thirds":
                arrays = (transforms.join(arrays),)
            elif step == "thirds":
                arrays = tuple(transforms.share(arrays[0], k, 3) for k in range(3))
            else:
                swap = transforms.by_role if step.startswith("-") else transforms.by_head
                arrays = tuple(swap(a, self._heads(name, step)) for a in arrays)
        return arrays

    def _heads(self, name: str, step: str) -> int:
        decoder = "decoder" in step
        heads = self.decoder_heads if decoder else self.heads
        if heads is None:
            option = "--decoder-heads or --recipe" if decoder else "--heads or --recipe"
            raise UserError(
                f"the rows of '{name}' go by head, and names do not tell how many heads there are: say it with {option}"
            )
        return heads


def decode(
    candidate: Candidate, report: Report, only: Only = "all", trust: bool = False, counter: int | None = None
) -> Model:
    """Bring a read file to canonical names. The arrays that the canonical model has not are checked to be constants.

    trust: leave that check, which reads values, out; counter: what the counters are whose layout has none.
    """
    assert candidate.architecture is not None
    layout, full = candidate.layout, candidate.state.full
    pieces: dict[str, Piece] = {}
    expected = candidate.architecture.expected()
    for name in [*expected, *candidate.extra]:
        if name in candidate.names.found:
            rule, files = candidate.names.found[name]
            rearrangements = tuple(f"-{step}" for step in reversed(layout.rearrangements(rule, name)))
            arrays = tuple(candidate.state.arrays[f] for f in files)
            pieces[name] = Piece(candidate.shapes[name], arrays, tuple(map(full, files)), rearrangements)
        elif name in candidate.uncounted:
            pieces[name] = Piece((), (transforms.constant((), "int64", counter or 0),), done=("made",))
            value = "0" if counter is None else f"{counter}, as its note says"
            report.made.append((name, f"{layout.name} files have no counters: {value}"))
    report.missing += candidate.missing
    report.unknown += map(full, candidate.names.unknown)
    report.dropped += [(full(name), reason) for name, reason in candidate.names.ignored]
    for key in candidate.state.others:
        report.dropped.append((key, "no array"))
    for rule, name in candidate.names.constants:
        if not trust and (only == "all" or part(name) == "encoder"):
            _check_constant(candidate.state.arrays[name], rule.role, name)
        report.dropped.append((full(name), "constant" if rule.role != "count" else "a count of averaging steps"))
    return select(Model(pieces, candidate.architecture), only, report)


def _check_constant(array: Lazy, role: str, name: str) -> None:
    value = {"ones": 1, "zeros": 0}.get(role.rstrip("?"))
    if value is not None and not np.all(array.read() == value):
        kind = "weight" if value else "bias"
        raise UserError(
            f"'{name}' holds a trained {kind} of a last norm that has none in MoCo v3: "
            "nothing here could keep it; take the encoder alone with --only encoder"
        )


def select(model: Model, only: Only, report: Report, reason: str = "not asked for") -> Model:
    """The whole model, or an encoder alone under plain names; `reason` is why the rest is left out."""
    if only == "all":
        return model
    prefix = BASE if only == "encoder" else MOMENTUM
    moco = model.architecture.method == "moco"
    if only == "momentum" and not any(name.startswith(MOMENTUM) for name in model.pieces):
        raise UserError(f"{report.source} has no momentum encoder")
    selected: dict[str, Piece] = {}
    for name, piece in model.pieces.items():
        owner = part(name)
        if moco and name.startswith(prefix) and owner.endswith("encoder"):
            selected[name[len(prefix) :]] = piece
        elif not moco and owner == "encoder":
            selected[name] = piece
        elif "made" not in piece.done:
            report.dropped += [(source, f"{owner}: {reason}") for source in piece.sources]
    if not selected:
        raise UserError(f"{report.source} has no encoder: it holds {', '.join(model.architecture.parts)} alone")
    report.missing = [
        name[len(prefix) :] if moco else name
        for name in report.missing
        if (part(name) == "encoder" and not moco)
        or (moco and name.startswith(prefix) and part(name).endswith("encoder"))
    ]
    report.made = [
        (name[len(prefix) :] if moco else name, why) for name, why in report.made if _stays(name, moco, prefix)
    ]
    shape = model.architecture
    made = architecture({n: p.shape for n, p in selected.items()})
    made = replace(made, heads=model.heads, norm_eps=shape.norm_eps, known_grid=shape.known_grid)
    return Model(selected, made, model.heads, model.decoder_heads)


def _stays(name: str, moco: bool, prefix: str) -> bool:
    return part(name).endswith("encoder") and (name.startswith(prefix) if moco else True)


def fit(model: Model, layout: Layout, report: Report) -> Model:
    """What of a model a layout can hold: all, its encoder, or an encoder in the place of MoCo's base encoder."""
    method = model.architecture.method
    if method in layout.methods:
        return model
    if "encoder" not in layout.methods and "moco" not in layout.methods and "mae" not in layout.methods:
        raise UserError(
            f"layout {layout.name} holds a {' or '.join(layout.methods)}, the source {method}: choose another with --to"
        )
    if method == "classifier":
        raise UserError(
            f"layout {layout.name} has no place for a classifier's head: choose another with --to, "
            "or take the encoder alone with --only encoder"
        )
    if method != "encoder":
        model = select(model, "encoder", report, f"layout {layout.name} has no place for it")
    if "encoder" in layout.methods or "moco" not in layout.methods:
        return model
    pieces = {BASE + name: piece for name, piece in model.pieces.items()}
    return replace(model, pieces=pieces, architecture=replace(model.architecture, method="moco"))


def encode(model: Model, layout: Layout, report: Report, family: str | None = None) -> dict[str, Lazy]:
    """The model under a layout's names, arranged as in that layout, in the originals' order.

    family: the layout's table, where it has several for such a model.
    """
    family = family or layout.family_for(model.pieces, model.architecture.family)
    if family is None:
        raise UserError(f"layout {layout.name} has no {'ResNets' if model.architecture.family == 'resnet' else 'ViTs'}")
    state: dict[str, Lazy] = {}
    for name, piece in ordered(model.pieces, layout):
        if name.endswith("num_batches_tracked") and not layout.counters:
            report.dropped += [(source, f"{layout.name} files have no counters") for source in piece.sources]
            report.made = [(made, why) for made, why in report.made if made != name]
            continue
        hit = write_name(layout, family, name)
        if hit is None:
            raise UserError(f"layout {layout.name} has no place for '{name}' ({model.architecture.describe()})")
        rule, names = hit
        rearranged = piece.rearranged(layout.rearrangements(rule, name))
        written = [layout.prefix + n for n in names]
        state.update(zip(written, model.settle(name, rearranged), strict=False))
        report.carry(name, piece.sources, tuple(written), (*rearranged.rearrangements, *piece.done))
    _add_constants(state, layout, family, report)
    return state


def ordered(pieces: Mapping[str, Piece], layout: Layout) -> list[tuple[str, Piece]]:
    """Pieces in the order in which a layout's files list them."""
    names = list(pieces)
    if layout.position_first:
        for prefix in ("", BASE, MOMENTUM):
            if {f"{prefix}cls_token", f"{prefix}pos_embed"} <= set(names):
                names.remove(f"{prefix}pos_embed")
                names.insert(names.index(f"{prefix}cls_token"), f"{prefix}pos_embed")
    return [(name, pieces[name]) for name in names]


def _add_constants(state: dict[str, Lazy], layout: Layout, family: str, report: Report) -> None:
    for rule in constants(layout, family):
        (name,) = rule.foreign
        sibling = state.get(f"{layout.prefix}{name.rsplit('.', 1)[0]}.running_mean")
        if rule.role == "count" and any(n.startswith("momentum_encoder.") for n in state):
            state[layout.prefix + name] = transforms.constant((), "int64", 0)
        elif rule.role != "count" and sibling is not None:
            value = 1 if rule.role == "ones" else 0
            state[layout.prefix + name] = transforms.constant(sibling.shape, sibling.dtype, value)
        else:
            continue
        report.made.append((name, f"layout {layout.name} has it as a constant"))
