"""Which layout a file has: found by its keys, with shapes against what the architecture asks for; never guessed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from triport.core.errors import UserError
from triport.core.selection import EVERYTHING, Selection
from triport.weights.arrays import MODULE, Tree
from triport.weights.canonical import Architecture, Shape, architecture, method_of, parts
from triport.weights.layouts.catalogue import LAYOUTS
from triport.weights.layouts.layout import Layout, Names, read_names, shown
from triport.weights.model.reasons import in_field_words
from triport.weights.model.states import (
    CONTAINERS,
    State,
    prefixes,
    states,
    under,
    unparallel,
)

MAX_ARRAYS = 20_000  # in one state; a ViT-H of MAE with its decoder has 494
SHOWN = 3  # of a list in a message
LITTLE = 0.5  # a table that knows less than this share of the names is not a candidate


class Ambiguous(UserError):
    """Layouts that make different things of a file, all of them without a fault."""

    def __init__(self, where: object, names: list[str]) -> None:
        super().__init__(
            f"{where} may be any of these layouts, which differ in what they make of it: {', '.join(names)}: "
            "say which with --from"
        )
        self.names = names


class Several(UserError):
    """More than one part of a file reads as a model, and nothing says which is meant."""

    def __init__(self, where: object, found: Sequence[Candidate]) -> None:
        options = [_options(candidate.state) for candidate in found]
        places = " and ".join(f"'{candidate.state.place}'" for candidate in found[:SHOWN])
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        layouts = " and ".join(dict.fromkeys(candidate.layout.name for candidate in found))
        super().__init__(
            f"{where}: its arrays under {places}{more} read as {layouts}: say which with {' or '.join(options[:SHOWN])}"
        )


def _options(state: State) -> str:
    """What to type for a state."""
    options = [f"--key {state.container}"] * bool(state.container and state.container not in CONTAINERS)
    return " ".join([*options, *[f"--prefix {state.prefix}"] * bool(state.outside)]) or f"--key {state.container}"


@dataclass
class Candidate:
    """A state read through one table of a layout, held against what its architecture asks for."""

    layout: Layout
    family: str
    state: State
    names: Names
    shapes: dict[str, Shape]  # canonical
    architecture: Architecture | None = None
    unfit: bool = False  # its names make a kind of model that this layout does not hold
    fault: str = ""  # why there is no architecture
    missing: list[str] = field(default_factory=list)  # canonical names
    uncounted: list[str] = field(default_factory=list)  # counters that this layout does not write
    extra: list[str] = field(default_factory=list)  # canonical names that the architecture does not have
    wrong: list[tuple[str, Shape, Shape]] = field(default_factory=list)  # name, shape, shape asked for
    same: list[Layout] = field(default_factory=list)  # other layouts that read the file alike

    @property
    def known(self) -> int:
        """How many of the file's names the table knows."""
        return len(self.state.arrays) - len(self.names.unknown)

    @property
    def faults(self) -> int:
        """Names and shapes that are not as they should be."""
        names = len(self.names.unknown) + len(self.names.twice) + len(self.missing) + len(self.extra)
        return names + len(self.wrong) + bool(self.fault)

    def first_fault(self) -> str:
        """The first thing that is not as this layout has it, for people."""
        if self.names.unknown:
            name = self.names.unknown[0]
            reason = in_field_words(name)
            return f"it does not know '{shown(name)}'" + (f" ({reason})" if reason else "")
        if self.names.twice:
            return f"two arrays of the file would be '{self.names.twice[0]}'"
        if self.fault:
            return self.fault
        if self.wrong:
            name, shape, asked = self.wrong[0]
            return f"'{name}' has the shape {shape}, not {asked}"
        if self.extra:
            return f"a {self.architecture.describe() if self.architecture else 'model'} has no '{self.extra[0]}'"
        return f"'{self.missing[0]}' is missing" if self.missing else "nothing differs"


def examine(layout: Layout, family: str, state: State) -> Candidate:
    """Read a state through one table."""
    names = read_names(layout, family, state.arrays)
    names.leave_mask_token()
    shapes = names.shapes(layout, {name: array.shape for name, array in state.arrays.items()})
    found = Candidate(layout, family, state, names, shapes)
    if not shapes:
        return found
    if layout.marks and not any(name in state.arrays for name in layout.marks):
        found.unfit, found.fault = True, f"it has no '{layout.marks[0]}'"
        return found
    method = method_of(shapes)
    if method not in layout.methods or (layout.needs and not set(layout.needs) & set(parts(shapes))):
        found.unfit, found.fault = True, f"it holds no {method} of this kind"
        return found
    try:
        found.architecture = architecture(shapes)
        expected = found.architecture.expected()
    except UserError as fault:
        found.fault = str(fault)
        return found
    for name, parameter in expected.items():
        if name not in shapes:
            counter = parameter.role == "counter" and not layout.counters
            (found.uncounted if counter else found.missing).append(name)
        elif shapes[name] != parameter.shape:
            found.wrong.append((name, shapes[name], parameter.shape))
    found.extra = [name for name in shapes if name not in expected]
    return found


def detect(
    tree: Tree,
    form: str = "",
    layouts: Sequence[Layout] = (),
    archs: Sequence[str] = (),
    own: bool = False,
    where: object = "the file",
    selection: Selection = EVERYTHING,
) -> Candidate:
    """The one reading of a file that fits.

    layouts: what to choose from (all where empty); form: the file's form, archs: names of architectures in it, own:
    whether it says that this project wrote it; these only choose among layouts that read the file alike.
    selection: which of the file's dicts and prefixes to read; where it names none, the one is taken that fits.
    UserError where nothing fits, with the nearest layout, and where readings that differ fit, with their names.
    """
    try:
        found = states(tree, selection)
    except UserError as fault:
        raise UserError(f"{where}: {fault}") from None
    whole = [state for state in found if state.arrays]
    if not whole:
        raise UserError(_no_arrays(tree, found, where))
    if (most := max(len(state.arrays) for state in whole)) > MAX_ARRAYS:
        raise UserError(f"{where} holds {most} named arrays, more than any model has that is known here")
    candidates = _examined(_wanted(whole, selection), layouts)
    exact = [c for c in candidates if c.names.found and not c.faults]
    chosen = exact or _inside(whole, candidates, layouts, selection) or _near(candidates)
    if not chosen:
        raise UserError(_nothing(candidates, where, bool(layouts)))
    groups: dict[object, list[Candidate]] = {}
    for candidate in chosen:
        groups.setdefault(_reading(candidate), []).append(candidate)
    groups = _first_state(groups, selection)
    bests = [max(group, key=lambda c: _score(c, form, archs, own)) for group in groups.values()]
    if len({c.state.place for c in bests}) > 1:
        raise Several(where, list({c.state.place: c for c in bests}.values()))
    if len(groups) > 1:
        names = list(dict.fromkeys(c.layout.name for group in groups.values() for c in group))
        raise Ambiguous(where, names)
    (best,), (group,) = bests, groups.values()
    best.same = list(dict.fromkeys(c.layout for c in group if c.layout is not best.layout))
    return best


def _examined(found: Sequence[State], layouts: Sequence[Layout]) -> list[Candidate]:
    return [
        examine(layout, family, state)
        for state in found
        for layout in (layouts or LAYOUTS)
        for family in layout.families
    ]


def _wanted(found: list[State], selection: Selection) -> list[State]:
    """The states that may be meant: averages where they are asked for, or where nothing else is there."""
    if selection.key or selection.prefix:
        return found
    averages = [state for state in found if state.average]
    return (averages or found) if selection.average else ([s for s in found if not s.average] or found)


def _inside(
    whole: Sequence[State], known: Sequence[Candidate], layouts: Sequence[Layout], selection: Selection
) -> list[Candidate]:
    """Readings of a part of a state: of its names under a prefix, or without what data parallelism put inside.

    None where a reading of the whole, `known`, knows more of its names, whatever else is wrong with it.
    """
    if selection.prefix:
        return []
    parts = [under(state, prefix) for state in whole for prefix in prefixes(state)]
    parts += [short for state in whole if (short := unparallel(state)) is not state]
    candidates = [c for c in _examined(_wanted(parts, selection), layouts) if c.names.found]
    exact = _outermost([c for c in candidates if not c.faults])
    chosen = exact or _outermost(_near(candidates))
    most = max((len(c.names.found) for c in known if not c.unfit), default=0)
    return chosen if max((len(c.names.found) for c in chosen), default=0) >= max(most, 1) else []


def _outermost(found: list[Candidate]) -> list[Candidate]:
    """Without readings of a part of what another one reads."""
    places = {(c.state.container, c.state.prefix) for c in found}
    return [
        c
        for c in found
        if not any(
            c.state.container == container and c.state.prefix != prefix and c.state.prefix.startswith(prefix)
            for container, prefix in places
        )
    ]


def _no_arrays(tree: Tree, found: Sequence[State], where: object) -> str:
    """Why there is nothing to read: what would hold the arrays is of an unknown class, or there are none."""
    for state in found:
        key, record = next(iter(state.inert.items()))
        if MODULE.match(record.name):
            return f"{where}: '{shown(key)}' is a whole {record.name}; save the model's state_dict() instead"
    named = [f"'{shown(key)}' is a {record.name}" for state in found for key, record in state.inert.items()]
    if named:
        more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
        return f"{where} holds no arrays that can be read: {', '.join(named[:SHOWN])}{more}; nothing of it was run"
    return f"{where} holds no named arrays that a model could be made of"


def _near(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that know most names, if they know enough of them and nothing but names is amiss."""
    fit = [c for c in candidates if c.names.found and not c.unfit and c.known >= LITTLE * len(c.state.arrays)]
    fewest = min((len(c.names.unknown) for c in fit), default=0)
    most = [c for c in fit if len(c.names.unknown) == fewest]
    sound = [c for c in most if c.architecture and not c.names.twice and not c.wrong]
    least = min((c.faults for c in sound), default=0)
    return [c for c in sound if c.faults == least]


def _reading(candidate: Candidate) -> object:
    """What a candidate makes of the file: equal for layouts that read it alike."""
    found = sorted(
        (name, files, candidate.layout.rearrangements(rule, name))
        for name, (rule, files) in candidate.names.found.items()
    )
    return candidate.state.place, tuple(found)


def _first_state(groups: dict[object, list[Candidate]], selection: Selection) -> dict[object, list[Candidate]]:
    """Only the readings of the likeliest state: a file may keep a model and its average."""
    order = (*CONTAINERS, "")
    ranks = {c.state.container: order.index(c.state.container) if c.state.container in order else len(order)
             for group in groups.values() for c in group}  # fmt: skip
    first = min(ranks.values())
    return {key: group for key, group in groups.items() if ranks[group[0].state.container] == first}


def _score(candidate: Candidate, form: str, archs: Sequence[str], own: bool) -> int:
    layout, state = candidate.layout, candidate.state
    placed = layout.container == state.container and (state.wrapped or not state.prefix)  # not inside another module
    score = 2 * placed
    score -= bool(layout.container and not placed)
    score += state.wrapped == bool(layout.prefix)
    score += layout.framework == form or (form in ("safetensors", "npz") and layout.framework == "torch")
    if archs and layout.archs and not candidate.family.startswith("resnet"):
        score += 2 if any(word in layout.archs for word in archs) else -2  # timm's files are as moco-v3's, but for it
    return score + 8 * (own and layout.name == "triport")


def _nothing(candidates: Sequence[Candidate], where: object, asked: bool) -> str:
    known = [c for c in candidates if c.names.found]
    fault = f"{where} {'does not have the layout that was asked for' if asked else 'has no layout that is known here'}"
    if not known:
        name = next(iter(candidates[0].state.arrays))
        return f"{fault}: no table knows '{shown(name)}' or any other of its names"
    best = max(known, key=lambda c: (not c.unfit, len(c.names.found), -c.faults))
    return f"{fault}; nearest is '{best.layout.name}', but {best.first_fault()}"
