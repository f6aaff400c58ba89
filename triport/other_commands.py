"""Commands in other projects' shape: mmpretrain's train.py and test.py, and PASSL's extract_weight.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from triport import launch
from triport.core.errors import UserError
from triport.core.options import Parser
from triport.core.spec import recipe
from triport.core.spec.foreign import hand_over

NEVER = 10**6  # epochs


def train(argv: Sequence[str]) -> int:
    """Run `triport train CONFIG`: the task is the configuration's."""
    p = _parser("train", "Train from a configuration or a recipe, which names the task.")
    p.add_argument("--work-dir", metavar="DIR", help="run folder, as --out")
    p.add_argument("--amp", action="store_true", help="as --precision bfloat16")
    p.add_argument("--auto-scale-lr", action="store_true", help="scale the rate by the batch (auto_scale_lr.enable)")
    p.add_argument("--no-validate", action="store_true", help="do not score held-out images during the run")
    for flag in ("--no-pin-memory", "--no-persistent-workers"):
        p.add_argument(flag, action="store_true", help="not needed: batches always come through shared memory")
    options, words = p.parse_known_args(list(argv))
    more = ["--out", options.work_dir] if options.work_dir else []
    more += ["--precision", "bfloat16"] if options.amp else []
    more += ["--cfg-options", "auto_scale_lr.enable=True"] if options.auto_scale_lr else []
    more += [f"monitor.evaluate_every={NEVER}"] if options.no_validate else []
    return launch.main([task_of(options.config, hand_over.EXECUTED in words), options.config, *words, *more])


def test(argv: Sequence[str]) -> int:
    """Run `triport test CONFIG CHECKPOINT`: accuracy on the held-out images."""
    p = _parser("test", "Evaluate a checkpoint of a configuration's or recipe's model.")
    p.add_argument("checkpoint", help="the weights, in any layout that `triport inspect` knows")
    p.add_argument("--work-dir", metavar="DIR", help="not needed: --out FILE takes the scores")
    p.add_argument("--amp", action="store_true", help="as --precision bfloat16")
    options, words = p.parse_known_args(list(argv))
    more = ["--precision", "bfloat16"] if options.amp else []
    return launch.main(["evaluate", options.config, "--weights", options.checkpoint, *words, *more])


def extract(argv: Sequence[str]) -> int:
    """Run `triport extract-weight --input A --output B`: a pretrained encoder as PASSL's DeiT takes it."""
    from triport.weights.__main__ import main as weights

    p = Parser(prog="triport extract-weight", description="Turn a pretraining checkpoint into weights of PASSL's DeiT.")
    p.add_argument("--input", required=True, metavar="FILE", help="a checkpoint of MoCo v3")
    p.add_argument("--output", required=True, metavar="FILE", help="the .pdparams to write")
    options, words = p.parse_known_args(list(argv))
    return weights(["convert", options.input, options.output, "--to", "passl-deit", *words])


def _parser(name: str, description: str) -> Parser:
    p = Parser(prog=f"triport {name}", description=description, allow_abbrev=False)
    p.add_argument("config", metavar="CONFIG", help="a file of mmpretrain, LiBai or PASSL, a recipe or its alias")
    p.add_argument("--launcher", default="none", help="not needed: --processes N starts several")
    return p


def task_of(config: str, executed: bool = False) -> str:
    """Return the task of a recipe or of another project's configuration; executed: by mmengine."""
    if not config.endswith(hand_over.ENDINGS):
        return recipe.load(config).task
    reading, _ = hand_over.read_file(Path(config), "mmpretrain" if executed else "", executed=executed)
    if reading is None:
        raise UserError(f"{config} changes a recipe of triport: give it to `triport finetune --libai-config`.")
    return reading.recipe.task
