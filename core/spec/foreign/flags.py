"""Command lines of the originals and of PASSL's scripts as recipes: main_moco, main_lincls, MAE's three, DeiT's main.

Each program's flags and defaults are its own; what they mean is an override of the shipped recipe of the same model.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from triport.core import slips
from triport.core.errors import UserError
from triport.core.options import Parser
from triport.core.options import parser as own_parser
from triport.core.spec import recipe as recipes
from triport.core.spec.foreign.flag_recipes import BUILD
from triport.core.spec.foreign.flag_tables import NAMED, PROGRAMS, Program
from triport.core.spec.foreign.reading import Reading
from triport.core.spec.spec import Recipe


def program_of(task: str, words: Sequence[str]) -> str | None:
    """Return whose command line this is: "main_moco", "main_lincls", ..., or None for one of this suite."""
    own = {word.partition("=")[0]: word.partition("=")[2] for word in words}
    if {"-a", "--arch"} & set(own):
        return {"pretrain": "main_moco", "linear": "main_lincls"}.get(task) or _no_program(task, "--arch")
    if "--model" not in own:
        return None
    model = own["--model"] or dict(zip(words, [*words[1:], ""]))["--model"]
    if model.startswith("deit_"):
        return "main" if task == "finetune" else _no_program(task, f"--model {model}")
    programs = {"pretrain": "main_pretrain", "linear": "main_linprobe", "finetune": "main_finetune"}
    return programs.get(task) or _no_program(task, "--model")


def _no_program(task: str, flag: str) -> str:
    raise UserError(
        f"{flag} does not go with `triport {task}`: measure with `triport evaluate RECIPE --weights FILE --data PATH`"
    )


def read(task: str, words: Sequence[str], processes: int = 1) -> tuple[Reading, list[str]]:
    """Read the command line of a program of the originals; also returns the words that are not its flags."""
    name = program_of(task, words)
    assert name is not None
    found, rest = parse(PROGRAMS[name], words)
    base, overrides, options = BUILD[name](found, processes)
    more = [f"name={name}", f'title="{PROGRAMS[name].project} {name}.py"', *overrides]
    if found.seed is not None:
        more.append(f"seed={found.seed}")
    notes = tuple(_named(name, found))
    own = [word for word in rest if _is_override(word)]
    recipe = _checked(base, more, own, f"{PROGRAMS[name].project}'s {name}.py")
    options = {key: value for key, value in options.items() if value not in (None, "", False)}
    used = tuple(flag for flag in vars(found) if flag not in NAMED)
    project = PROGRAMS[name].project
    return Reading(project=project, path=Path(name), recipe=recipe, options=options, notes=notes, used=used), rest


def _checked(base: str, more: list[str], own: list[str], program: str) -> Recipe:
    """The recipe of the flags; one that only the overrides `own` put right is taken with them."""
    for overrides in [more, [*more, *own]] if own else [more]:
        try:
            return recipes.load(base, overrides)
        except UserError as error:
            fault = str(error).rpartition(f"{overrides[-1]}: ")[2]
    raise UserError(f"{program}: {fault}")


def parse(program: Program, words: Sequence[str]) -> tuple[Namespace, list[str]]:
    """Return the values of a program's flags, and what is not one of them."""
    p = Parser(prog=f"{program.name}.py", add_help=False, allow_abbrev=False)
    p.takes_empty = True  # --resume '' is MAE's default
    for flags, more in program.flags:
        p.add_argument(*flags, **more)
    given = [word for word in words if not _is_override(word)]
    found, rest = p.parse_known_args(given)
    own = {*own_parser(program.task)._option_string_actions, *slips.STARTING}
    for option in (word.partition("=")[0] for word in rest if word.startswith("--")):
        meant = slips.remedy(f"unrecognized arguments: {option}", p._option_string_actions)
        if option not in own and meant.endswith("?"):
            raise UserError(f"{program.name}.py has no {option}{meant}")
    if program.positional:
        free = own_parser(program.task).parse_known_args(rest)[0].words
        if free:
            found.data = free[0]
            rest.remove(free[0])
    return found, [*[word for word in words if _is_override(word)], *rest]


def _is_override(word: str) -> bool:
    key, equals, _ = word.partition("=")
    return bool(equals) and not key.startswith("-") and "/" not in key


def _named(name: str, found: Namespace) -> list[str]:
    """Lines about flags without a counterpart, where they are not as they always are."""
    usual, _ = parse(PROGRAMS[name], [])
    return [
        f"--{flag.replace('_', '-')} = {value}: {NAMED[flag]}"
        for flag, value in vars(found).items()
        if flag in NAMED and value != getattr(usual, flag) and not (flag == "momentum" and _has_momentum(name, found))
    ]


def _has_momentum(name: str, found: Namespace) -> bool:
    return name == "main_lincls" or getattr(found, "optimizer", "") == "lars"
