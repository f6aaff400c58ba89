"""Where a file keeps its arrays: every dict of named arrays in it, wrappers and prefixes of their names, averages."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from triport.core.errors import UserError, closest
from triport.core.selection import EVERYTHING, Selection
from triport.weights.arrays import Inert, Lazy, Tree
from triport.weights.layouts.layout import shown

CONTAINERS = ("state_dict", "model", "model_state_dict", "model_state", "module", "net")  # the likeliest first
# Words that a wrapper puts between the names of modules; none of these models has a module of such a name.
WRAPPERS = (
    "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_ddp_module", "_module",
    "_fpw_module", "_dp_wrapped_module",
)  # fmt: skip
PARALLEL = "module"  # data parallel; mmpretrain's momentum encoder has a module of this name, so only in front
NOT_MODELS = re.compile(r"(optim|opt$|graph$|scaler|amp|lr_|scheduler|rng|random|loops|callbacks)")
AVERAGE = re.compile(r"(^|[._/])(ema|averaged|average|swa|shadow)([._/]|$)")
REPEATED = 4  # times that `module.` is taken off
STACKS = ("blocks", "layers", "layer", "decoder_blocks")  # what is numbered below them is not a model
DEPTH = 3  # keys that lead to a state
MOST = 40  # states, and prefixes, that are looked at
LONGEST = 4  # words of a prefix
FEWEST = 8  # arrays under a prefix that may be a model


@dataclass
class State:
    """One dict of named arrays in a file."""

    container: str  # the keys that lead to it, "" for the outermost dict itself
    arrays: dict[str, Lazy]  # names without wrappers and prefix
    prefix: str = ""  # that was taken off every name
    others: list[str] = field(default_factory=list)  # keys of the state that hold no array
    inert: dict[str, Inert] = field(default_factory=dict)  # where an array may have been meant
    outside: list[str] = field(default_factory=list)  # names in the file that the prefix leaves out
    names: dict[str, str] = field(default_factory=dict)  # name -> name in the file, where a wrapper stood inside

    def full(self, name: str) -> str:
        """The name as it stands in the file."""
        return self.names.get(name, self.prefix + name)

    @property
    def place(self) -> str:
        """Where its arrays stand in the file, for people: "state_dict.backbone"."""
        return ".".join(filter(None, (self.container, self.prefix.rstrip("."))))

    @property
    def wrapped(self) -> bool:
        """Whether the names begin with a wrapper's word."""
        return self.prefix.partition(".")[0] in (PARALLEL, *WRAPPERS)

    @property
    def average(self) -> bool:
        """Whether its key or prefix says that it is a moving average of weights."""
        return bool(AVERAGE.search(self.container) or AVERAGE.search(self.prefix))


def states(tree: Tree, selection: Selection = EVERYTHING) -> list[State]:
    """Every dict of named arrays that a file may keep its model in, the likeliest first, as far as it is selected.

    UserError where a key or prefix that was asked for is not there, and where no average is.
    """
    found = [_state(key, inner) for key, inner in _dicts(tree)]
    if selection.key:
        found = [state for state in found if state.container == selection.key] or _of_key(tree, selection.key)
    if selection.prefix:
        found = _of_prefix(found, selection.prefix)
    order = {key: place for place, key in enumerate((*CONTAINERS, ""))}
    return sorted(found, key=lambda state: order.get(state.container, len(order)))


def described(keys: list[str]) -> str:
    """Keys for people, the first few."""
    return ", ".join(f"'{shown(key)}'" for key in keys[:12]) + (f" and {len(keys) - 12} more" if len(keys) > 12 else "")


def _of_key(tree: Tree, key: str) -> list[State]:
    inner = tree
    for word in (key,) if isinstance(tree, Mapping) and key in tree else key.split("."):
        inner = inner.get(word) if isinstance(inner, Mapping) else None
    if isinstance(inner, Mapping) and any(isinstance(value, Lazy) for value in inner.values()):
        return [_state(key, inner)]
    keys = list(dict.fromkeys(k for k, _ in _dicts(tree) if k))
    there = f"those that do: {described(keys)}" if keys else "none does: leave out --key"
    raise UserError(f"no dict of arrays has the key '{shown(key)}'.{closest(key, keys)} {there[:1].upper()}{there[1:]}")


def _of_prefix(found: list[State], prefix: str) -> list[State]:
    dotted = prefix if prefix.endswith(".") else f"{prefix}."
    chosen = [under(state, p) for state in found for p in (dotted, _bare(dotted)) if _has(state, p)]
    if not chosen:
        known = list(dict.fromkeys(p for state in found for p in prefixes(state)))
        there = f"Prefixes of its names: {described(known)}" if known else "Its names have no prefix: leave it out"
        raise UserError(f"no name begins with the prefix '{shown(dotted)}'. {there}")
    return list({(state.container, state.prefix): state for state in chosen}.values())


def _bare(prefix: str) -> str:
    """A prefix as it was typed from the file, without its wrappers."""
    parts = [word for word in prefix.split(".") if word not in WRAPPERS]
    return ".".join(parts[1:] if parts[0] == PARALLEL else parts)


def _has(state: State, prefix: str) -> bool:
    return bool(prefix) and any(name.startswith(prefix) and name != prefix for name in state.arrays)


def _dicts(tree: Tree, where: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[object, Tree]]]:
    """Keys and dicts with arrays of their own, from the outside in; those of optimisers apart."""
    if not isinstance(tree, Mapping):
        return
    if any(isinstance(value, (Lazy, Inert)) for value in tree.values()):
        yield where, tree
    for key, inner in tree.items() if depth < DEPTH else ():
        if isinstance(inner, Mapping) and isinstance(key, str) and not NOT_MODELS.match(key.lower()):
            yield from _dicts(inner, f"{where}.{key}" if where else key, depth + 1)


def _state(container: str, inner: Mapping[object, Tree]) -> State:
    arrays = {str(key): value for key, value in inner.items() if isinstance(value, Lazy)}
    others = [str(key) for key, value in inner.items() if not isinstance(value, Lazy)]
    inert = {str(key): value for key, value in inner.items() if isinstance(value, Inert)}
    return _unwrapped(State(container, arrays, "", others, inert))


def _unwrapped(state: State) -> State:
    """The state with wrapper words taken off, in front of all names or anywhere inside them."""
    for _ in range(REPEATED):
        if state.arrays and all(n.startswith(f"{PARALLEL}.") and n != f"{PARALLEL}." for n in state.arrays):
            state = under(state, f"{PARALLEL}.")
        state = _without(state, WRAPPERS)
    return state


def _without(state: State, unwanted: tuple[str, ...]) -> State:
    """The state without these unwanted in its names; as it is where two names would become one."""
    if not any(word in name for name in state.arrays for word in unwanted):
        return state
    short = {name: ".".join(w for w in name.split(".") if w not in unwanted) or name for name in state.arrays}
    if len(set(short.values())) != len(short) or all(name == new for name, new in short.items()):
        return state
    common = next((f"{w}." for w in unwanted if all(n.startswith(f"{w}.") for n in state.arrays)), "")
    if common and all(name[len(common) :] == new for name, new in short.items()):
        return _without(under(state, common), unwanted)
    names = {new: state.full(name) for name, new in short.items()}
    return replace(state, arrays={short[name]: array for name, array in state.arrays.items()}, names=names)


def unparallel(state: State) -> State:
    """The state without `module.` anywhere, for models whose parts were wrapped one by one."""
    return _without(state, (PARALLEL,))


def under(state: State, prefix: str) -> State:
    """The arrays whose names begin with a prefix, without it."""
    inside = {name: array for name, array in state.arrays.items() if name.startswith(prefix) and name != prefix}
    outside = [state.full(name) for name in state.arrays if name not in inside]
    return replace(
        state,
        arrays={name[len(prefix) :]: array for name, array in inside.items()},
        prefix=state.prefix + prefix,
        outside=[*state.outside, *outside],
        names={name[len(prefix) :]: own for name, own in state.names.items() if name in inside},
    )


def prefixes(state: State) -> list[str]:
    """What stands in front of enough names to be a model's, that with most arrays first."""
    counts: Counter[str] = Counter()
    for name in state.arrays:
        parts = name.split(".")
        counts.update(".".join(parts[:k]) + "." for k in range(1, min(len(parts), LONGEST + 1)))
    enough = [prefix for prefix, count in counts.most_common() if count >= FEWEST]
    return [prefix for prefix in enough if not set(STACKS) & set(prefix.split("."))][:MOST]
