"""What a command line or a LiBai LazyConfig file says of a model in parts, as words that every run understands."""

from __future__ import annotations

import argparse
import ast
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from triport.backends.oneflow.libai.config import DEGREES, GRAPH, PERIOD, TAKEN, Given, read
from triport.backends.oneflow.libai.config import words as from_config
from triport.backends.oneflow.libai.mesh import Degrees
from triport.core.errors import UserError, closest
from triport.core.options import EvaluateOptions, TrainOptions
from triport.core.spec import recipe as recipes
from triport.core.spec.foreign.reading import Reading

OPTIONS = ["--data-parallel", "--tensor-parallel", "--pipeline-parallel", "--graph", "--eval-only", "--libai-config"]
OPTIONS += ["--libai-out", "--libai-every"]
STYLES = {
    "pytorch": "a file of the originals (.pth.tar, .pth)",
    "oneflow": "a folder of OneFlow or LiBai",
    "triport": "a run folder, a checkpoint or a .safetensors of ours",
}


def parser() -> argparse.ArgumentParser:
    """Return the options of a model in parts; the run's own stand in triport.core.options."""
    p = argparse.ArgumentParser(prog="finetune", add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS)
    where = p.add_argument_group("a model in parts, on LiBai's layers")
    where.add_argument("--data-parallel", type=int, metavar="D", help="replicas of the model; default: what is left")
    where.add_argument("--tensor-parallel", type=int, metavar="T", help="ways to split each layer (1)")
    where.add_argument("--pipeline-parallel", type=int, metavar="P", help="ways to split the row of blocks (1)")
    where.add_argument("--graph", action="store_true", help="compile each step (nn.Graph); eager is the default")
    where.add_argument("--eval-only", action="store_true", help="measure what the weights hold, train nothing")
    where.add_argument("--libai-config", metavar="FILE", help="a LazyConfig file: train.dist, finetune, ...")
    where.add_argument("--libai-out", metavar="DIR", help="also leave the result in LiBai's folder form")
    where.add_argument("--libai-every", type=int, metavar="N", help="and a checkpoint there every N steps")
    return p


def wanted(words: Sequence[str]) -> bool:
    """Say whether a command line asks for a model in parts, has settings that are LiBai's, or wants to know of them."""
    return any(word.partition("=")[0] in (*OPTIONS, "-h", "--help") or _is_libais(word) for word in words)


def settle(given: Sequence[str]) -> tuple[Namespace, list[str]]:
    """Return the options of the parts, and the words of the run; the command line stands above a file."""
    options, every = parser().parse_known_args(list(given))
    config = Given({} if options.libai_config is None else read(Path(options.libai_config)), options.libai_config)
    words = [word for word in every if not _is_libais(word)]
    for key, _, text in (word.partition("=") for word in every if _is_libais(word)):
        config.values[key] = text if key.startswith("finetune.") else _value(text)
    for option in DEGREES:
        if getattr(options, option) is None:
            setattr(options, option, config.degree(option))
    options.graph = options.graph or bool(config.values.get(GRAPH, False))
    options.libai_every = options.libai_every or int(config.values.get(PERIOD, 0))
    options.given = config if not options.eval_only else config.of_model()
    words = from_config(options.given, degrees(options).data, words)
    return options, [*words, *weights(config.tuning(), words)]


def degrees_of(reading: Reading | None, words: list[str]) -> list[str]:
    """Add the degrees and the graph that a file of LiBai says, which makes the run one on LiBai's layers."""
    if reading is None or reading.project != "LiBai":
        return words
    given = {word.partition("=")[0] for word in words}
    more = [f"--{name}-parallel={reading.beside[name]}" for name in ("tensor", "pipeline")]
    more = [word for word in more if word.partition("=")[0] not in given]
    pipeline = reading.beside["pipeline"] > 1 or "--pipeline-parallel" in given
    if reading.beside["graph"] and not pipeline and "--graph" not in given:
        more.append("--graph")
    return [*words, *more]


def _is_libais(word: str) -> bool:
    key = word.partition("=")[0]
    return "=" in word and (key.startswith("finetune.") or key in TAKEN)


def _value(text: str) -> Any:
    """What a word's text means: a number, a list, true or false, else the text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def degrees(options: Namespace) -> Degrees:
    """Return the mesh that options mean; the data degree is what is left of the processes."""
    tensor, pipeline = (1 if n is None else n for n in (options.tensor_parallel, options.pipeline_parallel))
    world = int(os.environ.get("WORLD_SIZE", 1))
    data = 1 if options.data_parallel is None else options.data_parallel
    if min(data, tensor, pipeline) < 1:
        raise UserError("--data-parallel, --tensor-parallel and --pipeline-parallel are whole numbers from 1 on.")
    left = max(1, world // (tensor * pipeline))
    return Degrees(left if options.data_parallel is None else data, tensor, pipeline)


def check(options: Namespace, of_run: TrainOptions | EvaluateOptions) -> None:
    """Raise UserError for what OneFlow 0.9.0 computes wrongly without a word."""
    accumulates = isinstance(of_run, TrainOptions) and (of_run.micro_batch is not None or (of_run.accumulate or 1) > 1)
    if options.graph and (options.pipeline_parallel or 1) > 1 and accumulates:
        raise UserError(
            "OneFlow 0.9.0 computes wrong numbers now and then where a graph with a pipeline accumulates gradients: "
            "leave out --graph (eager mode is exact), --pipeline-parallel, or --accumulate and --micro-batch."
        )


def task(words: Sequence[str]) -> str:
    """Return the task of the recipe that the words name, else "finetune"."""
    named = words and not words[0].startswith("-") and "=" not in words[0]
    return recipes.load(words[0]).task if named else "finetune"


def weights(tuning: Mapping[str, Any], words: Sequence[str]) -> list[str]:
    """Return `finetune.enable`, `finetune.weight_style` and `finetune.path` as --weights."""
    known = ("finetune.enable", "finetune.weight_style", "finetune.path")
    for key in tuning:
        if key not in known:
            raise UserError(f"'{key}' is not a setting.{closest(key, known)} There are: {', '.join(known)}")
    if not tuning or str(tuning.get("finetune.enable", True)).lower() in ("false", "0", "no"):
        return []
    if any(word.partition("=")[0] == "--weights" for word in words):
        raise UserError("--weights and finetune.path both name weights: give one of them.")
    style, path = str(tuning.get("finetune.weight_style", "triport")), Path(str(tuning.get("finetune.path", "")))
    if style not in STYLES:
        raise UserError(
            f"finetune.weight_style is not '{style}'.{closest(style, STYLES)} There are: {', '.join(STYLES)}"
        )
    if "finetune.path" not in tuning or not path.exists():
        raise UserError(f"finetune.path={path if 'finetune.path' in tuning else ''} is not there.")
    if style != style_of(path):
        raise UserError(f"finetune.path={path} is not {STYLES[style]}: set finetune.weight_style={style_of(path)}.")
    return ["--weights", str(path)]


def style_of(path: Path) -> str:
    """Return which of the styles a path has."""
    if path.is_file():
        return "triport" if path.suffix == ".safetensors" else "pytorch"
    own = ("model.safetensors", "encoder.safetensors", "recipe.toml")
    return "triport" if any((path / name).exists() for name in own) or (path / "checkpoints").is_dir() else "oneflow"
