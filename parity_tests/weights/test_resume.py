"""A run of the original code goes on here: three steps of its own optimiser equal three steps after its saved file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triport.core.errors import UserError
from triport.core.model.groups import groups
from triport.core.model.inventory import inventory
from triport.core.record import checkpoint
from triport.core.spec import Recipe
from triport.core.spec import recipe as recipes
from triport.parity_tests.fixtures.foreign import model_of
from triport.parity_tests.tool import small
from triport.parity_tests.tool.ask import Question, ask
from triport.parity_tests.weights.test_optimizer import moments
from triport.weights.arrays import lazy
from triport.weights.commands.command import main
from triport.weights.commands.convert import convert
from triport.weights.commands.to_run import continued, make_run
from triport.weights.files import files
from triport.weights.layouts.catalogue import BY_NAME
from triport.weights.model.model import Piece, encode
from triport.weights.model.reading import Reading
from triport.weights.model.report import Report

MAE, MOCO, LARS = (recipes.load(f"tiny/test_{name}") for name in ("mae_vit", "moco_vit", "moco_resnet"))
IMAGES, LR = 600, 1e-2  # two batches of 256 make an epoch
BOUND = 1e-6
ROOT = Path(__file__).resolve().parents[2]


def gradients(recipe: Recipe, count: int, seed: int) -> list[dict[str, np.ndarray]]:
    draw = np.random.default_rng(seed)
    names = groups(inventory(recipe.model), recipe.optimizer)
    shapes = {p.name: p.shape for p in inventory(recipe.model) if p.name in names}
    return [{n: draw.standard_normal(s).astype(np.float32) for n, s in shapes.items()} for _ in range(count)]


class Lars:
    """Momentum SGD whose matrices move in proportion to their norms (arXiv 1708.03888), kept as moco-v3 keeps it.

    g' = g + wd p and a factor trust |p| / |g'| for tensors of more than one dimension; mu = m mu + g'; p -= lr mu.
    """

    def __init__(self, parameters: list[Any], decay: float, momentum: float, trust: float) -> None:
        self.parameters, self.decay, self.momentum, self.trust = parameters, decay, momentum, trust
        self.mu: list[Any] = [None] * len(parameters)

    def step(self) -> None:
        for k, p in enumerate(self.parameters):
            if p.grad is None:
                continue
            g = p.grad.clone()
            if p.ndim > 1:
                g = g + self.decay * p.detach()
                lengths = p.detach().norm(), g.norm()
                if lengths[0] > 0 and lengths[1] > 0:
                    g = g * (self.trust * lengths[0] / lengths[1])
            self.mu[k] = g.clone() if self.mu[k] is None else self.momentum * self.mu[k] + g
            p.data -= LR * self.mu[k]

    def state_dict(self) -> dict[str, Any]:
        group = {"lr": LR, "weight_decay": self.decay, "momentum": self.momentum, "trust_coefficient": self.trust}
        state = {k: {"mu": mu.clone()} for k, mu in enumerate(self.mu) if mu is not None}
        return {"state": state, "param_groups": [{**group, "params": list(range(len(self.parameters)))}]}


def original(torch: Any, recipe: Recipe) -> tuple[dict[str, Any], Any]:
    """A model's tensors by name, and the optimiser that the original code would have over them."""
    own = inventory(recipe.model)
    tensors = {n: torch.from_numpy(a.copy()) for n, a in small.arrays(recipe.model).items()}
    for p in own:
        if p.trainable:
            tensors[p.name].requires_grad_()
    spec = recipe.optimizer
    if spec.kind == "lars":
        lists = [tensors[p.name] for p in own if not p.buffer]
        return tensors, Lars(lists, spec.weight_decay, spec.momentum, spec.trust)
    trained = [p for p in own if not p.buffer]
    if recipe.model.objective.kind == "moco":
        made = [{"params": [tensors[p.name] for p in trained], "weight_decay": spec.weight_decay}]
    else:
        trained = [p for p in trained if p.trainable]
        still = [p for p in trained if len(p.shape) == 1 or p.name.endswith(".bias")]
        rest = [p for p in trained if p not in still]
        made = [
            {"params": [tensors[p.name] for p in still], "weight_decay": 0.0},
            {"params": [tensors[p.name] for p in rest], "weight_decay": spec.weight_decay},
        ]
    return tensors, torch.optim.AdamW(made, lr=LR, betas=spec.betas, eps=spec.eps)


def advance(torch: Any, tensors: dict[str, Any], optimizer: Any, given: list[dict[str, np.ndarray]]) -> None:
    for step in given:
        for name, gradient in step.items():
            tensors[name].grad = torch.from_numpy(gradient.copy())
        optimizer.step()


def tree_of(recipe: Recipe, tensors: dict[str, Any], optimizer: Any, epoch: int) -> dict[str, Any]:
    """What main_moco.py or main_pretrain.py would save after so many epochs."""
    arrays = {n: t.detach().clone() for n, t in tensors.items()}
    scaler = {
        "scale": 65536.0,
        "growth_factor": 2.0,
        "backoff_factor": 0.5,
        "growth_interval": 2000,
        "_growth_tracker": 4,
    }
    rest = {"optimizer": optimizer.state_dict(), "scaler": scaler}
    if recipe.model.objective.kind == "mae":
        return {"model": arrays, "epoch": epoch - 1, **rest}
    state = {f"module.{n}": t for n, t in arrays.items()}
    return {"epoch": epoch, "arch": "vit_other", "state_dict": state, **rest}


def saved(torch: Any, recipe: Recipe, path: Path, epochs: int = 1) -> tuple[dict[str, Any], Any]:
    tensors, optimizer = original(torch, recipe)
    advance(torch, tensors, optimizer, gradients(recipe, 2 * epochs, seed=0))
    torch.save(tree_of(recipe, tensors, optimizer, epochs), path)
    return tensors, optimizer


GONE_ON = {recipe.name: recipe for recipe in (MAE, MOCO, LARS)}


@pytest.fixture(scope="module")
def originals(torch: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], Question]]:
    """Of each recipe: the original's tensors three steps after its file, and what a framework is asked for instead."""
    made: dict[str, tuple[dict[str, Any], Question]] = {}
    for name, recipe in GONE_ON.items():
        folder = tmp_path_factory.mktemp("original")
        tensors, optimizer = saved(torch, recipe, folder / "a.pth.tar")
        make_run(folder / "a.pth.tar", folder / "run", Reading(recipe=recipe), images=IMAGES)
        given = gradients(recipe, 3, seed=1)
        advance(torch, tensors, optimizer, given)
        made[name] = tensors, Question("resume", {"folder": str(folder / "run"), "gradients": given, "lr": LR})
    return made


@pytest.fixture(scope="module")
def gone_on(originals: dict[str, tuple[dict[str, Any], Question]]) -> Callable[[str], dict[str, Any]]:
    """What a framework makes of every recipe, asked once."""

    @cache
    def asked(backend: str) -> dict[str, Any]:
        questions = [question for _, question in originals.values()]
        return dict(zip(originals, ask(backend, questions, probe="triport.parity_tests.fixtures.resume_probe")))

    return asked


@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize("recipe", GONE_ON.values(), ids=list(GONE_ON))
def test_three_steps_after_the_file_are_three_steps_of_the_original(
    recipe: Recipe, backend: str, originals: dict[str, Any], gone_on: Callable[[str], dict[str, Any]]
) -> None:
    tensors, question = originals[recipe.name]
    found = gone_on(backend)[recipe.name]
    for name in question.given["gradients"][0]:
        wanted = tensors[name].detach().numpy()
        assert np.abs(found[name] - wanted).max() <= BOUND * max(1, np.abs(wanted).max()), name
    if recipe.optimizer.kind == "adamw":
        assert found["state/step"] == 5


def test_what_goes_over_is_all_of_it(torch: Any, tmp_path: Path) -> None:
    long = replace(MOCO, schedule=replace(MOCO.schedule, epochs=9))
    tensors, optimizer = saved(torch, long, tmp_path / "a.pth.tar", epochs=3)
    report = make_run(tmp_path / "a.pth.tar", tmp_path / "run", Reading(recipe=long), images=IMAGES)
    arrays, state = checkpoint.load(checkpoint.latest(tmp_path / "run"))
    assert (state["step"], state["closed"], state["epoch"], state["images"]) == (6, 3, 3, IMAGES)
    assert recipes.parse(state["recipe"], Path("x")) == long == recipes.load(str(tmp_path / "run" / "recipe.toml"))
    assert arrays["model"].keys() == {p.name for p in inventory(MOCO.model)}
    for name, array in arrays["model"].items():
        assert np.array_equal(array, tensors[name].detach().numpy()), name
    own = optimizer.param_groups[0]["params"]
    names = [p.name for p in inventory(MOCO.model) if not p.buffer]
    places = {name: optimizer.state[t] for name, t in zip(names, own, strict=True) if t in optimizer.state}
    assert {k for k in arrays["optimizer"] if k != "step"} == {
        f"{slot}/{n}" for n in places for slot in ("exp_avg", "exp_avg_sq")
    }
    assert all(np.array_equal(arrays["optimizer"][f"exp_avg/{n}"], s["exp_avg"].numpy()) for n, s in places.items())
    assert moments(optimizer, own) and arrays["optimizer"]["step"] == 6
    notes = " ".join(report.notes)
    assert "scaler is not needed" in notes and "epoch 3 of" in notes and "--resume" in notes
    assert json.loads((tmp_path / "run" / "origin.json").read_text())["source_sha256"]


# ---------------------------------------------------------------- other projects' files
@pytest.mark.parametrize("layout", ["passl-moco", "mmpretrain-moco", "libai-moco"])
def test_files_of_other_projects_go_on_too(torch: Any, layout: str, tmp_path: Path) -> None:
    tensors, optimizer = original(torch, MOCO)
    advance(torch, tensors, optimizer, gradients(MOCO, 2, seed=0))
    arrays = {n: t.detach().numpy() for n, t in tensors.items()}
    model = model_of(MOCO.model, {n: lazy(a) for n, a in arrays.items()})
    if layout == "passl-moco":
        torch.save(tree_of(MOCO, tensors, optimizer, 1), tmp_path / "a.pth")
        convert(tmp_path / "a.pth", tmp_path / "b.pd", heads=2, optimizer=True)
        source = tmp_path / "b.pd"
    else:
        source = foreign(tmp_path, layout, model, optimizer, [p for p in inventory(MOCO.model) if not p.buffer])
    made = continued(source, Reading(recipe=MOCO), images=IMAGES)
    assert (made.state["step"], made.state["closed"]) == (2, 1)
    for name, array in made.arrays["model"].items():
        counter = name.endswith("num_batches_tracked")
        assert counter or np.array_equal(array, arrays[name]), name
    own = dict(zip((p.name for p in inventory(MOCO.model) if not p.buffer), optimizer.param_groups[0]["params"]))
    for key, array in made.arrays["optimizer"].items():
        slot, _, name = key.partition("/")
        assert key == "step" or np.array_equal(array, optimizer.state[own[name]][slot].numpy()), key


def foreign(folder: Path, layout: str, model: Any, optimizer: Any, parameters: list[Any]) -> Path:
    """A file of mmengine, or a folder of LiBai, with the optimiser's state in the order of its own modules."""
    kind = BY_NAME[layout]
    state = encode(model, kind, Report())
    heads = model.heads
    own = dict(zip((p.name for p in parameters), optimizer.param_groups[0]["params"]))
    order = [p for p in parameters if layout != "libai-moco" or p.trainable]
    report = Report()
    encode(model, kind, report)
    written = {c.name: c.targets[0] for c in report.carried}
    place = {name: k for k, name in enumerate(state)}
    order.sort(key=lambda p: place[written[p.name]])
    entries: dict[Any, Any] = {}
    for k, p in enumerate(order):
        if own[p.name] in optimizer.state:
            slots = optimizer.state[own[p.name]]
            transposed = {}
            for slot in ("exp_avg", "exp_avg_sq"):
                one = replace(model, pieces={p.name: Piece(p.shape, (lazy(slots[slot].numpy()),))}, heads=heads)
                transposed[slot] = encode(one, replace_constants(kind), Report())[written[p.name]]
            entries[k] = {**transposed, **({} if layout == "libai-moco" else {"step": 2})}
    group = {"lr": LR, "weight_decay": 0.1, "betas": (0.9, 0.999), "eps": 1e-8}
    if layout == "libai-moco":
        entries["step"] = 2
        found = {"state": entries, "param_groups": [{**group, "params": list(range(len(order)))}]}
        tree = {"model": state, "optimizer": found}
        files.write(folder / "libai", tree, "libai")
        return folder / "libai"
    one_each = [{**group, "params": [k]} for k in range(len(order))]
    tree = {
        "meta": {"epoch": 1, "iter": 2},
        "state_dict": state,
        "optimizer": {"state": entries, "param_groups": one_each},
    }
    files.write(folder / "epoch_1.pth", tree, "torch")
    return folder / "epoch_1.pth"


def named_slots(recipe: Recipe, tensors: dict[str, Any], optimizer: Any) -> dict[str, dict[str, np.ndarray]]:
    """AdamW's averages by canonical name."""
    return {
        p.name: {slot: optimizer.state[tensors[p.name]][slot].numpy() for slot in ("exp_avg", "exp_avg_sq")}
        for p in inventory(recipe.model)
        if tensors[p.name] in optimizer.state
    }


def in_layout(kind: Any, model: Any, name: str, array: np.ndarray, written: str) -> Any:
    """An array of the optimiser as a layout keeps it."""
    one = replace(model, pieces={name: Piece(array.shape, (lazy(array),))})
    return encode(one, replace_constants(kind), Report())[written]


def trained_foreign(torch: Any, recipe: Recipe, layout: str) -> tuple[Any, dict[str, Any], dict[str, Any], Any, Any]:
    """A model of two steps in a layout: its state, names in files, slots, the tensors, and the layout."""
    tensors, optimizer = original(torch, recipe)
    advance(torch, tensors, optimizer, gradients(recipe, 2, seed=0))
    model = model_of(recipe.model, {n: lazy(t.detach().numpy()) for n, t in tensors.items()})
    report = Report()
    state = encode(model, BY_NAME[layout], report)
    written = {c.name: c.targets[0] for c in report.carried}
    slots = {
        name: {slot: in_layout(BY_NAME[layout], model, name, array, written[name]) for slot, array in own.items()}
        for name, own in named_slots(recipe, tensors, optimizer).items()
    }
    return state, written, slots, tensors, optimizer


def assert_continues(source: Path, recipe: Recipe, tensors: dict[str, Any], optimizer: Any) -> Any:
    made = continued(source, Reading(recipe=recipe), images=IMAGES)
    assert (made.state["step"], made.state["closed"]) == (2, 1)
    for name, array in made.arrays["model"].items():
        if not name.endswith("num_batches_tracked"):
            assert np.array_equal(array, tensors[name].detach().numpy()), name
    wanted = named_slots(recipe, tensors, optimizer)
    assert len(made.arrays["optimizer"]) == 1 + 2 * len(wanted)
    for key, array in made.arrays["optimizer"].items():
        slot, _, name = key.partition("/")
        assert key == "step" or np.array_equal(array, wanted[name][slot]), key
    return made


def libai_groups(recipe: Recipe, written: dict[str, str], state: Any) -> list[tuple[float, list[str]]]:
    """(decay, names) as LiBai's build.py makes them: equal settings in one group, in the order of the modules."""
    place = {name: k for k, name in enumerate(state)}
    rules = groups(inventory(recipe.model), recipe.optimizer)
    names = sorted(rules, key=lambda name: place[written[name]])
    found: dict[float, list[str]] = {}
    for name in names:
        found.setdefault(rules[name].weight_decay, []).append(name)
    return list(found.items())


def libai_folder(folder: Path, recipe: Recipe, state: Any, written: Any, slots: Any, decays: Any = None) -> Path:
    """A folder of LiBai whose optimiser has a group for each decay, as OneFlow keeps them."""
    made: list[dict[str, Any]] = []
    entries: dict[Any, Any] = {"step": 2}
    for decay, names in libai_groups(recipe, written, state):
        first = len(entries) - 1
        own = {"lr": LR, "eps": recipe.optimizer.eps, "betas": recipe.optimizer.betas, "weight_decay": decay}
        made.append({"_options": own, "_enable_clip_grad": False, "params": list(range(first, first + len(names)))})
        entries |= {first + k: slots[name] for k, name in enumerate(names)}
    for group, decay in zip(made, decays or [], strict=False):
        group["_options"]["weight_decay"] = decay
    files.write(folder / "libai", {"model": state, "optimizer": {"state": entries, "param_groups": made}}, "libai")
    return folder / "libai"


def test_a_folder_of_libai_with_a_group_for_each_decay_goes_on(torch: Any, tmp_path: Path) -> None:
    state, written, slots, tensors, optimizer = trained_foreign(torch, MAE, "libai-mae")
    source = libai_folder(tmp_path, MAE, state, written, slots)
    made = assert_continues(source, MAE, tensors, optimizer)
    assert len(libai_groups(MAE, written, state)) == 2
    assert "goes on with" in " ".join(made.report.notes)  # at another learning rate than the file's


@pytest.mark.parametrize(
    ("decays", "wanted"),
    [
        ((0.05, 0.01), r"it lists .* parameters, in groups \(\d+ of decay 0\.05 and \d+ of decay 0\.01\) that are not"),
        ((0.0, 0.05), r"that are not the recipe's \(\d+ of decay 0 and \d+ of decay 0\.05\)"),
        ((0.05, 0.05), r"that are not the recipe's"),
    ],
)
def test_groups_that_are_not_the_recipes_are_refused(torch: Any, decays: Any, wanted: str, tmp_path: Path) -> None:
    state, written, slots, _, _ = trained_foreign(torch, MAE, "libai-mae")
    source = libai_folder(tmp_path, MAE, state, written, slots, decays)
    with pytest.raises(UserError, match=wanted):
        continued(source, Reading(recipe=MAE), images=IMAGES)


def test_what_a_graph_of_libai_keeps_goes_on(torch: Any, tmp_path: Path) -> None:
    state, written, slots, tensors, optimizer = trained_foreign(torch, MAE, "libai-mae")
    graph: dict[str, Any] = {"model": dict(state), "System-Train-TrainStep": lazy(np.array([2], np.int64))}
    for name, own in slots.items():
        graph |= {f"model.{written[name]}-m": own["exp_avg"], f"model.{written[name]}-v": own["exp_avg_sq"]}
    files.write(tmp_path / "libai", {"model": state, "graph": graph}, "libai")
    made = assert_continues(tmp_path / "libai", MAE, tensors, optimizer)
    assert "does not tell the settings of its optimiser" in " ".join(made.report.notes)
    files.write(tmp_path / "bare", {"model": state, "graph": {"model": dict(state)}}, "libai")
    with pytest.raises(UserError, match="the graph keeps no averages of AdamW"):
        continued(tmp_path / "bare", Reading(recipe=MAE), images=IMAGES)


def test_a_checkpoint_of_passls_mae_goes_on(torch: Any, tmp_path: Path) -> None:
    """Its AdamW lists parameters under the names that Paddle gave the tensors (tasks/ssl/mae/util/misc.py)."""
    state, written, slots, tensors, optimizer = trained_foreign(torch, MAE, "passl-mae")
    own = {name: f"linear_{k}.w_0" for k, name in enumerate(state)}
    model = {name: replace(array, name=own[name]) for name, array in state.items()}
    rules = groups(inventory(MAE.model), MAE.optimizer)
    still = [name for name, rule in rules.items() if not rule.weight_decay]
    rest = [name for name, rule in rules.items() if rule.weight_decay]
    settings = {"lr": LR, "betas": (0.9, 0.95), "eps": 1e-8}
    made = [
        {**settings, "weight_decay": decay, "params": [own[written[name]] for name in names]}
        for decay, names in ((0.0, still), (MAE.optimizer.weight_decay, rest))
    ]
    entries = {own[written[name]]: {"step": 2, **found} for name, found in slots.items()}
    tree = {"model": model, "optimizer": {"state": entries, "param_groups": made}, "epoch": 0, "scaler": {}}
    files.write(tmp_path / "checkpoint-0.pd", tree)
    assert_continues(tmp_path / "checkpoint-0.pd", MAE, tensors, optimizer)


@pytest.mark.parametrize("value", ["x", [0.1], None, True, 10**400, float("nan"), {}, (0.05, 0.05)])
@pytest.mark.parametrize("key", ["weight_decay", "betas", "lr", "eps"])
def test_settings_that_are_no_numbers_are_one_line(torch: Any, key: str, value: Any, tmp_path: Path) -> None:
    """Of a hostile or damaged optimiser; what is missing is taken from the recipe."""
    saved(torch, MAE, tmp_path / "a.pth")
    tree = files.read(tmp_path / "a.pth").tree
    for group in tree["optimizer"]["param_groups"]:
        group[key] = value
    files.write(tmp_path / "b.pth", tree, "torch")
    if value is None or key == "lr":
        assert continued(tmp_path / "b.pth", Reading(recipe=MAE), images=IMAGES).state["step"] == 2
        return
    with pytest.raises(UserError, match=f"had {key} "):
        continued(tmp_path / "b.pth", Reading(recipe=MAE), images=IMAGES)


def test_another_parameter_that_decays_is_refused(torch: Any, tmp_path: Path) -> None:
    saved(torch, MAE, tmp_path / "a.pth")
    tokens = replace(MAE, optimizer=replace(MAE.optimizer, decays="matrices_but_tokens"))
    with pytest.raises(UserError, match=r"decays 'cls_token' by 0\.05, the recipe .* by 0: name a recipe with another"):
        continued(tmp_path / "a.pth", Reading(recipe=tokens), images=IMAGES)


def replace_constants(kind: Any) -> Any:
    """The layout without the constants that it adds to a whole model."""
    families = {name: tuple(rule for rule in rules if rule.canonical) for name, rules in kind.families.items()}
    return replace(kind, families=families)


# ---------------------------------------------------------------- the recipe
def test_the_recipe_is_found_where_only_one_made_such_a_model(torch: Any, tmp_path: Path) -> None:
    saved(torch, MAE, tmp_path / "a.pth")
    assert continued(tmp_path / "a.pth", images=IMAGES).recipe == MAE
    tree = files.read(tmp_path / "a.pth").tree
    del tree["model"]["decoder_blocks.0.norm1.weight"]
    files.write(tmp_path / "b.pth", tree, "torch")
    with pytest.raises(UserError, match=r"does not say which recipe .*name it with --recipe|is not the whole model"):
        continued(tmp_path / "b.pth", images=IMAGES)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"recipe": "tiny/test_moco_resnet"}, "ResNet-18"),
        ({"recipe": "moco"}, "No recipe"),
        ({"images": 900}, r"has taken 2 steps in 1 epochs; 900 images in batches of 256.* make 3"),
        ({"images": 100}, "do not fill a batch"),
        ({"images": None}, "say how many training images it had with --images"),
        ({"recipe": replace(MOCO, optimizer=replace(MOCO.optimizer, weight_decay=0.3))}, "had weight_decay 0.1"),
        ({"recipe": replace(MOCO, optimizer=replace(MOCO.optimizer, kind="lars"))}, "lars.*has mu"),
        ({"recipe": replace(MOCO, schedule=replace(MOCO.schedule, epochs=0))}, "has taken 2 steps, the whole of"),
    ],
)
def test_what_does_not_agree_is_refused(torch: Any, change: dict[str, Any], wanted: str, tmp_path: Path) -> None:
    saved(torch, MOCO, tmp_path / "a.pth.tar")
    with pytest.raises(UserError, match=wanted):
        given = {"recipe": MOCO, "images": IMAGES, **change}
        make_run(tmp_path / "a.pth.tar", tmp_path / "run", Reading(recipe=given["recipe"]), images=given["images"])
    assert not (tmp_path / "run").exists()


def test_weights_without_an_optimiser_are_no_run(torch: Any, tmp_path: Path) -> None:
    saved(torch, MOCO, tmp_path / "a.pth.tar")
    tree = files.read(tmp_path / "a.pth.tar").tree
    del tree["optimizer"]
    files.write(tmp_path / "b.pth.tar", tree, "torch")
    with pytest.raises(UserError, match="has no optimiser's state to go on with"):
        make_run(tmp_path / "b.pth.tar", tmp_path / "run", Reading(recipe=MOCO), images=IMAGES)


def test_the_command_line_makes_a_run_folder_and_never_takes_anothers_place(
    torch: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(torch, MOCO, tmp_path / "a.pth.tar")
    words = ["convert", str(tmp_path / "a.pth.tar"), str(tmp_path / "run"), "--to", "triport-run"]
    words += ["--recipe", "tiny/test_moco_vit", "--images", str(IMAGES)]
    assert main(words) == 0 and "triport pretrain --resume" in capsys.readouterr().out
    before = (tmp_path / "run" / "checkpoints" / "last" / "state.json").read_bytes()
    assert main(words) == 2 and "already holds a run" in capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoints" / "last" / "state.json").read_bytes() == before
    assert main([*words, "--force"]) == 0 and "is now in" in capsys.readouterr().out


# ---------------------------------------------------------------- --resume FILE
def pretrain(*words: object) -> int:
    from triport.backends.torch import pretrain as entry

    return int(entry.main(["--workers", "0", "--quiet", *map(str, words)]) or 0)


@pytest.mark.parametrize("method", ["mae", "moco"])
def test_a_run_resumed_from_a_file_of_the_original_ends_as_the_run_that_was_never_stopped(
    torch: Any, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own = [f"tiny/test_{method}_vit", "batch=16", "schedule.epochs=2", "monitor.knn_every=0"]
    data = images_of(tmp_path / "images")
    common = [*own, "--data", data]
    assert pretrain(*common, "--out", tmp_path / "whole") == 0
    assert pretrain(*common, "--out", tmp_path / "half", "--stop-after-steps", 3) == 0
    name = {"mae": "checkpoint-0.pth", "moco": "checkpoint_0001.pth.tar"}[method]
    convert(tmp_path / "half", tmp_path / name, optimizer=True, recipe=recipes.load(own[0], own[1:4]))
    assert pretrain(*common, "--resume", tmp_path / name, "--out", tmp_path / "rest") == 0
    ends = [checkpoint.load(checkpoint.latest(tmp_path / run)) for run in ("whole", "rest")]
    assert ends[0][1]["step"] == ends[1][1]["step"] == 6
    for group in ("model", "optimizer"):
        assert ends[0][0][group].keys() == ends[1][0][group].keys()
        for key, array in ends[0][0][group].items():
            assert np.abs(array - ends[1][0][group][key]).max() <= BOUND * max(1, np.abs(array).max()), key
    # the same command again finds its run finished, and another file does not take that run's place
    assert pretrain(*common, "--resume", tmp_path / name, "--out", tmp_path / "rest") == 0
    saved(torch, MAE, tmp_path / "other.pth")
    capsys.readouterr()
    assert pretrain(*common, "--resume", tmp_path / "other.pth", "--out", tmp_path / "rest") == 2
    assert "already holds a run that was not made of" in capsys.readouterr().err


def test_several_processes_go_on_from_a_file_of_the_original(
    torch: Any, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All ranks are given the file; they make one run folder of it and end where one process ends."""
    monkeypatch.chdir(tmp_path)
    data = images_of(tmp_path / "images")
    own = ["tiny/test_mae_vit", "batch=16", "schedule.epochs=2", "monitor.knn_every=0", "--data", str(data)]
    assert pretrain(*own, "--out", tmp_path / "half", "--stop-after-steps", 3) == 0
    convert(tmp_path / "half", tmp_path / "checkpoint-0.pth", optimizer=True, recipe=recipes.load(own[0], own[1:4]))
    assert pretrain(*own, "--resume", tmp_path / "checkpoint-0.pth", "--out", tmp_path / "one") == 0
    words = ["--backend", backend, "--processes", "2", "--workers", "0", "--resume", str(tmp_path / "checkpoint-0.pth")]
    command = [sys.executable, "-m", "triport", "pretrain", *own, *words, "--out", str(tmp_path / "two")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("resumed from") == 1 and "processes 1 -> 2" in done.stdout
    assert not list(tmp_path.glob(".two*")) and (tmp_path / "two" / "origin.json").is_file()
    ends = [checkpoint.load(checkpoint.latest(tmp_path / run)) for run in ("one", "two")]
    assert ends[0][1]["step"] == ends[1][1]["step"] == 6
    for key, array in ends[0][0]["model"].items():
        assert np.abs(array - ends[1][0]["model"][key]).max() <= 10 * BOUND * max(1, np.abs(array).max()), key


def test_a_run_of_the_original_is_lengthened_as_it_goes_on(
    torch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own = ["tiny/test_mae_vit", "batch=16", "schedule.epochs=1", "monitor.knn_every=0"]
    words = [*own, "--data", images_of(tmp_path / "images")]
    assert pretrain(*words, "--out", tmp_path / "run") == 0
    convert(tmp_path / "run", tmp_path / "checkpoint-0.pth", optimizer=True, recipe=recipes.load(own[0], own[1:4]))
    resumed = [*words, "--resume", tmp_path / "checkpoint-0.pth", "--out", tmp_path / "on"]
    assert pretrain(*resumed, "--epochs", 2) == 0
    assert pretrain(*words, "--resume", tmp_path / "run", "--epochs", 2) == 0
    assert "lengthened from 1 to 2 epochs at step 3" in (tmp_path / "run" / "train.log").read_text()
    ends = [checkpoint.load(checkpoint.latest(tmp_path / run)) for run in ("run", "on")]
    assert ends[0][1]["step"] == ends[1][1]["step"] == 6 and len(ends[0][1]["lengthened"]) == 1
    for key, array in ends[0][0]["model"].items():
        assert np.abs(array - ends[1][0]["model"][key]).max() <= BOUND * max(1, np.abs(array).max()), key


def images_of(folder: Path) -> Path:
    """48 grey pictures of 16 x 16 in one class."""
    from PIL import Image

    draw = np.random.default_rng(0)
    (folder / "train" / "a").mkdir(parents=True)
    for k in range(48):
        Image.fromarray(draw.integers(0, 256, (16, 16), np.uint8)).save(folder / "train" / "a" / f"{k:02}.png")
    return folder


def test_a_file_that_cannot_be_gone_on_from_says_why(
    torch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = images_of(tmp_path / "images")
    (tmp_path / "page.pth").write_text("<!doctype html>")
    words = ["tiny/test_mae_vit", "batch=16", "--data", data, "--out", tmp_path / "run", "--resume"]
    assert pretrain(*words, tmp_path / "page.pth") == 2 and "is a web page" in capsys.readouterr().err
    saved(torch, MAE, tmp_path / "a.pth")
    assert pretrain(*words, tmp_path / "a.pth") == 2
    assert "has taken 2 steps in 1 epochs; 48 images" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
