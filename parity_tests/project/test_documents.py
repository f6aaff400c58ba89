"""The commands in README and docs are real: options parse, recipes exist, modules and files are there."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from triport.command import COMMANDS
from triport.core.options import Task, parse
from triport.core.spec import recipe
from triport.core.spec.foreign import flags, hand_over
from triport.launch import parser as launch_parser
from triport.models import main as models
from triport.parity_tests.tool.__main__ import COMMANDS as PARITY
from triport.parity_tests.tool.__main__ import code_of
from triport.verbs.start import NAMES as VERBS
from triport.weights.commands.command import parser as files

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TASKS: tuple[Task, ...] = ("pretrain", "linear", "finetune", "evaluate")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(\$ )?([A-Z_]+=\S+ )*(triport|python3?|torchrun|make|\.venvs/\S+|git|pip) ")
# options that are one backend's own: its entry points read them before triport.core.options does
OWN = {
    "--export": 1, "--data-parallel": 1, "--tensor-parallel": 1, "--pipeline-parallel": 1, "--libai-out": 1,
    "--libai-every": 1, "--mode": 1, "--graph": 0, "--eval-only": 0,
}  # fmt: skip


def commands(page: Path) -> list[list[str]]:
    """The shell words of every command in a page's blocks, comments apart, continued lines joined."""
    found = []
    for language, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        lines = block.replace("\\\n", " ").splitlines() if language in ("", "sh", "bash", "console") else []
        for line in filter(COMMAND.match, map(str.strip, lines)):
            words = shlex.split(line.removeprefix("$ "), comments=True)
            while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words.pop(0)
            found.append(words)
    return found


ALL = [(page.name, words) for page in PAGES for words in commands(page)]


def test_there_are_commands_to_look_at() -> None:
    assert len(ALL) > 20 and {"triport", "make", "torchrun"} <= {words[0] for _, words in ALL}


@pytest.mark.parametrize(
    ("page", "words"), ALL, ids=lambda value: " ".join(value)[:80] if isinstance(value, list) else value
)
def test_a_command_of_a_page_is_one(page: str, words: list[str]) -> None:
    match words:
        case ["triport", *rest] | ["python3" | "python", "-m", "triport", *rest]:
            ours(rest)
        case ["python3" | "python", "-m", "triport.weights", *rest]:
            files().parse_args(rest)
        case ["make", target, *_]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"no target {target}"
        case _:
            launched(words)


def ours(words: list[str]) -> None:
    """A command of triport."""
    assert words[0] in COMMANDS, f"triport has no command {words[0]}"
    task = next((task for task in TASKS if task == words[0]), None)
    if task:
        run(task, launch_parser(words[0]).parse_known_args(words[1:])[1])
    elif words[0] in ("convert", "inspect", "diff", "layouts"):
        files().parse_args(words)
    elif words[0] in VERBS:
        import_module(f"triport.verbs.{words[0]}").parser().parse_intermixed_args(words[1:])
    elif words[0] == "parity":
        parity(words[1:])
    elif words[0] == "models":
        models(words[1:])


def parity(words: list[str]) -> None:
    """A command of the parity tool, the options of those that have a parser of their own."""
    assert words[0] in PARITY, f"triport parity has no command {words[0]}"
    code = code_of(words[0], words[1:])
    if code.startswith("foreign."):
        reader = import_module(f"triport.parity_tests.tool.{code}").parser()
        reader.parse_known_args(words[1:]) if words[0] == "upgrade" else reader.parse_intermixed_args(words[1:])


def run(task: Task, words: list[str]) -> None:
    """The options of a run, and the recipe that is named."""
    line = hand_over.taken(words)  # another project's file and its settings
    rest = line.words
    if line.file is None and flags.program_of(task, rest):
        _, rest = flags.read(task, rest)
        rest = ["RECIPE", *rest]
    for option, takes in OWN.items():
        while option in rest:
            at = rest.index(option)
            del rest[at : at + 1 + takes]
    options = parse(task, [word for word in rest if not re.fullmatch(r"(?:[A-Z]\w+|finetune)\.[\w.]+=\S+", word)])
    named = options.recipe
    if named and "…" not in named and re.fullmatch(r"(moco_v3|mae|transfer|tiny)/\w+", named):
        recipe.load(named, [word for word in options.overrides if "…" not in word])


def launched(words: list[str]) -> None:
    """A framework's own launcher with one of our entry points: the module is there, and takes what follows it."""
    joined = " ".join(words)
    module = re.search(r"-m triport\.(backends\.\w+\.(\w+))|(backends/\w+/(\w+)\.py)", joined)
    if module is None:
        return  # a tool that is not ours
    path = ROOT / (module[3] or f"{module[1].replace('.', '/')}.py")
    assert path.is_file(), f"there is no {path.name}"
    rest = shlex.split(joined[module.end() :])
    task = next(task for task in TASKS if task == (module[2] or module[4]))
    if rest and rest[0] not in ("RECIPE", "…"):
        run(task, rest)


def test_packages_that_pages_name_can_be_found() -> None:
    assert all(find_spec(name) for name in ("triport", "triport.weights", "triport.core"))
