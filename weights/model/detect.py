"""Which layout a file has: found by its keys, with shapes against what the architecture asks for; never guessed."""

from __future__ import annotations

from collections.abc import Sequence

from triport.core.errors import UserError
from triport.core.selection import EVERYTHING, Selection
from triport.weights.arrays import MODULE, Tree
from triport.weights.layouts.catalogue import LAYOUTS
from triport.weights.layouts.layout import Layout, shown
from triport.weights.model.candidate import Candidate, examine
from triport.weights.model.reasons import OTHERS
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
PICKLED = "torch._utils._rebuild"  # what makes a tensor of a pickle; torch.save gives it a storage of its own
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


def _options(state: State, part: bool = False) -> str:
    """What to type for a state; part: its prefix, too, where all names have it."""
    options = [f"--key {state.container}"] * bool(state.container and state.container not in CONTAINERS)
    return (
        " ".join([*options, *[f"--prefix {state.prefix}"] * bool(part or state.outside)]) or f"--key {state.container}"
    )


def detect(
    tree: Tree,
    form: str = "",
    layouts: Sequence[Layout] = (),
    archs: Sequence[str] = (),
    own: bool = False,
    where: object = "the file",
    selection: Selection = EVERYTHING,
    headless: bool = False,
) -> Candidate:
    """The one reading of a file that fits.

    layouts: what to choose from (all where empty); form: the file's form, archs: names of architectures in it, own:
    whether it says that this project wrote it; these only choose among layouts that read the file alike.
    selection: which of the file's dicts and prefixes to read; where it names none, the one is taken that fits.
    headless: heads that are no classifier's of the encoder are passed over.
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
    candidates = _examined(_wanted(whole, selection), layouts, headless)
    exact = [c for c in candidates if c.names.found and not c.faults]
    chosen = exact or _inside(whole, candidates, layouts, selection, headless) or _near(candidates)
    if not chosen:
        remedy = _remedy(whole, layouts, selection, headless)
        raise UserError(_nothing(candidates, where, bool(layouts)) + (remedy and f"; {remedy}"))
    groups: dict[object, list[Candidate]] = {}
    for candidate in chosen:
        groups.setdefault(_reading(candidate), []).append(candidate)
    every, groups = groups, _first_state(groups, selection)
    bests = [max(group, key=lambda c: _score(c, form, archs, own)) for group in groups.values()]
    if len({c.state.place for c in bests}) > 1:
        raise Several(where, list({c.state.place: c for c in bests}.values()))
    if len(groups) > 1:
        names = list(dict.fromkeys(c.layout.name for group in groups.values() for c in group))
        raise Ambiguous(where, names)
    (best,), (group,) = bests, groups.values()
    best.same = list(dict.fromkeys(c.layout for c in group if c.layout is not best.layout))
    left = [group[0].state for key, group in every.items() if key not in groups]
    best.beside = list(dict.fromkeys((state.place, _options(state)) for state in left if state.container))
    if best.names.unknown or best.missing:
        best.remedy = _remedy(whole, layouts, selection, True, best.state.place)
    return best


def _examined(found: Sequence[State], layouts: Sequence[Layout], headless: bool) -> list[Candidate]:
    return [
        examine(layout, family, state, headless)
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
    whole: Sequence[State],
    known: Sequence[Candidate],
    layouts: Sequence[Layout],
    selection: Selection,
    headless: bool,
) -> list[Candidate]:
    """Readings of a part of a state: of its names under a prefix, or without what data parallelism put inside.

    None where a reading of the whole, `known`, knows more of its names, whatever else is wrong with it.
    """
    if selection.prefix:
        return []
    parts = _parts(whole)
    parts += [short for state in whole if (short := unparallel(state)) is not state]
    candidates = [c for c in _examined(_wanted(parts, selection), layouts, headless) if c.names.found]
    exact = _outermost([c for c in candidates if not c.faults])
    chosen = exact or _outermost(_near(candidates))
    most = max((len(c.names.found) for c in known if not c.unfit), default=0)
    return chosen if max((len(c.names.found) for c in chosen), default=0) >= max(most, 1) else []


def _parts(whole: Sequence[State]) -> list[State]:
    return [under(state, prefix) for state in whole for prefix in prefixes(state)]


def _remedy(
    whole: Sequence[State], layouts: Sequence[Layout], selection: Selection, headless: bool, chosen: str | None = None
) -> str:
    """What to type for a part of a file that reads, where the whole (or what stands at `chosen`) does not; else ""."""
    if not headless and any(_sound(c) for c in _examined(_wanted(list(whole), selection), layouts, True)):
        return "without its head it is read with --only encoder"
    if selection.prefix:
        return ""
    candidates = _examined(_wanted(_parts(whole), selection), layouts, True)
    sound = _outermost([c for c in candidates if _sound(c) and c.state.place != chosen])
    options = list(dict.fromkeys(_options(c.state, part=True) for c in sound))[:SHOWN]
    return f"a part of it reads as a model: take that with {' or '.join(options)}" if sound else ""


def _sound(candidate: Candidate) -> bool:
    """Whether nothing is amiss with a reading but heads and the like, which no encoder has."""
    amiss = candidate.faults - len(candidate.names.unknown)
    heads = all(OTHERS.match(name.split(".")[0]) for name in candidate.names.unknown)
    return bool(candidate.names.found and candidate.architecture) and not amiss and heads


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
        pickled = any(record.name.startswith(PICKLED) for state in found for record in state.inert.values())
        remedy = "; tensors that pickle wrote are not read: load it and write it with torch.save" if pickled else ""
        listed = ", ".join(named[:SHOWN])
        return f"{where} holds no arrays that can be read: {listed}{more}; nothing of it was run{remedy}"
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
