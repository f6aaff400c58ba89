"""Which layout a file has: found by its keys, with shapes against what the architecture asks for; never guessed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from triport.core.errors import UserError
from triport.weights.arrays import Lazy, Tree
from triport.weights.canonical import Architecture, Shape, architecture, method_of, parts
from triport.weights.layouts.catalogue import LAYOUTS
from triport.weights.layouts.layout import Layout, Names, read_names, shown
from triport.weights.model.reasons import in_field_words

CONTAINERS = ("state_dict", "model", "model_state_dict", "module", "net")
PREFIXES = ("module.", "_orig_mod.")  # of data-parallel and of compiled modules
MAX_ARRAYS = 20_000  # in one state; a ViT-H of MAE with its decoder has 494
MAX_PREFIXES = 4  # that are taken off one after the other
LITTLE = 0.5  # a table that knows less than this share of the names is no candidate


class Ambiguous(UserError):
    """Layouts that make different things of a file, all of them without a fault."""

    def __init__(self, where: object, names: list[str]) -> None:
        super().__init__(
            f"{where} may be any of these layouts, which differ in what they make of it: {', '.join(names)}: "
            "say which with --from"
        )
        self.names = names


@dataclass
class State:
    """One dict of named arrays in a file."""

    container: str  # its key in the file's outermost dict, "" for the outermost itself
    arrays: dict[str, Lazy]  # names without a prefix that all of them had
    prefix: str = ""
    others: list[str] = field(default_factory=list)  # keys of the state that hold no array

    def full(self, name: str) -> str:
        """The name as it stands in the file."""
        return self.prefix + name


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


def states(tree: Tree) -> list[State]:
    """Every dict of named arrays that a file may keep its model in, the likeliest first."""
    found = []
    if isinstance(tree, Mapping):
        for key in (*CONTAINERS, ""):
            inner = tree if key == "" else tree.get(key)
            if isinstance(inner, Mapping):
                arrays = {str(k): v for k, v in inner.items() if isinstance(v, Lazy)}
                if arrays:
                    found.append(_state(key, arrays, [str(k) for k, v in inner.items() if not isinstance(v, Lazy)]))
    return found


def _state(container: str, arrays: dict[str, Lazy], others: list[str]) -> State:
    stripped = ""
    for _ in range(MAX_PREFIXES):
        for prefix in PREFIXES:
            if all(name.startswith(prefix) and name != prefix for name in arrays):
                arrays = {name[len(prefix) :]: array for name, array in arrays.items()}
                stripped += prefix
    return State(container, arrays, stripped, others)


def examine(layout: Layout, family: str, state: State) -> Candidate:
    """Read a state through one table."""
    names = read_names(layout, family, state.arrays)
    shapes = names.shapes(layout, {name: array.shape for name, array in state.arrays.items()})
    found = Candidate(layout, family, state, names, shapes)
    if not shapes:
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
    words: Sequence[str] = (),
    own: bool = False,
    where: object = "the file",
) -> Candidate:
    """The one reading of a file that fits.

    layouts: what to choose from (all where empty); form: the file's form, words: its own architecture words, own:
    whether it says that this project wrote it; these only choose among layouts that read the file alike.
    UserError where nothing fits, with the nearest layout, and where readings that differ fit, with their names.
    """
    found = states(tree)
    if not found:
        raise UserError(f"{where} holds no named arrays that a model could be made of")
    if (most := max(len(state.arrays) for state in found)) > MAX_ARRAYS:
        raise UserError(f"{where} holds {most} named arrays, more than any model has that is known here")
    candidates = [
        examine(layout, family, state)
        for state in found
        for layout in (layouts or LAYOUTS)
        for family in layout.families
    ]
    exact = [c for c in candidates if c.names.found and not c.faults]
    chosen = exact or _near(candidates)
    if not chosen:
        raise UserError(_nothing(candidates, where, bool(layouts)))
    groups: dict[object, list[Candidate]] = {}
    for candidate in chosen:
        groups.setdefault(_reading(candidate), []).append(candidate)
    groups = _first_state(groups)
    if len(groups) > 1:
        names = list(dict.fromkeys(c.layout.name for group in groups.values() for c in group))
        raise Ambiguous(where, names)
    (group,) = groups.values()
    best = max(group, key=lambda c: _score(c, form, words, own))
    best.same = list(dict.fromkeys(c.layout for c in group if c.layout is not best.layout))
    return best


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
        (name, files, candidate.layout.turns(rule, name)) for name, (rule, files) in candidate.names.found.items()
    )
    return candidate.state.container, tuple(found)


def _first_state(groups: dict[object, list[Candidate]]) -> dict[object, list[Candidate]]:
    """Only the readings of the likeliest state: a file may keep a model and its average."""
    containers = [group[0].state.container for group in groups.values()]
    first = min(containers, key=(*CONTAINERS, "").index)
    return {key: group for key, group in groups.items() if group[0].state.container == first}


def _score(candidate: Candidate, form: str, words: Sequence[str], own: bool) -> int:
    layout, state = candidate.layout, candidate.state
    score = 2 * (layout.container == state.container)
    score += bool(state.prefix) == bool(layout.prefix)
    score += layout.framework == form or (form in ("safetensors", "npz") and layout.framework == "torch")
    if words and layout.archs and not candidate.family.startswith("resnet"):
        score += 2 if any(word in layout.archs for word in words) else -2  # timm's files are as moco-v3's, but for it
    return score + 8 * (own and layout.name == "triport")


def _nothing(candidates: Sequence[Candidate], where: object, asked: bool) -> str:
    known = [c for c in candidates if c.names.found]
    fault = f"{where} {'does not have the layout that was asked for' if asked else 'has no layout that is known here'}"
    if not known:
        name = next(iter(candidates[0].state.arrays))
        return f"{fault}: no table knows '{shown(name)}' or any other of its names"
    best = max(known, key=lambda c: (not c.unfit, len(c.names.found), -c.faults))
    return f"{fault}; nearest is '{best.layout.name}', but {best.first_fault()}"
