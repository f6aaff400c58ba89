"""Data, tensor and pipeline degrees on LiBai's layers give the numbers of one process; files; settings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from core.schedule import Values
from core.spec import OptimizerSpec, ViT
from parity_tests import small
from parity_tests.ask import Question, ask, ask_ranks
from parity_tests.bounds import hold
from parity_tests.questions import batch, distance, parts, training

pytestmark = pytest.mark.framework("oneflow")
TRIAL = "parity_tests.libai_trial"
SGD = OptimizerSpec(kind="sgd", lr=0.05, weight_decay=0.01, decays="all", clip_norm=0.5)
VALUES = [Values(0.05, 0.0), Values(0.04, 0.0), Values(0.03, 0.0)]
DEGREES = [(2, 1, 1), (1, 2, 1), (1, 1, 2), (1, 2, 2), (2, 1, 2), (2, 2, 1)]


def deeper(name):
    """A small model with a number of blocks that two stages can share."""
    spec = small.MODELS[name]
    assert isinstance(spec.encoder, ViT)
    return replace(spec, encoder=replace(spec.encoder, depth=4))


MODELS = {name: deeper(name) for name in ("finetune-mean", "finetune-token", "probe-mae", "probe-vit")}
INPUTS = {name: [small.inputs(spec, n=8, seed=seed) for seed in (0, 1, 2)] for name, spec in MODELS.items()}


def soft(inputs, spec):
    """The same inputs with soft targets, as Mixup makes them."""
    draw = np.random.Generator(np.random.Philox(3)).random((8, spec.objective.classes), dtype=np.float32)
    return {**inputs, "targets": draw / draw.sum(axis=1, keepdims=True)}


INPUTS["finetune-token"] = [soft(each, MODELS["finetune-token"]) for each in INPUTS["finetune-token"]]


def question(name, degrees, rank, micro=1, **more):
    """The training that one process of a mesh is asked for: its part of each batch, in `micro` micro-batches."""
    world = int(np.prod(degrees))
    steps = [[batch(part) for part in parts(parts(each, world)[rank], micro)] for each in INPUTS[name]]
    spec = MODELS[name]
    given = {"spec": spec, "arrays": small.arrays(spec), "optimizer": SGD, "batches": steps, "values": VALUES}
    return Question("train", {**given, "degrees": degrees, **more})


@pytest.fixture(scope="module")
def alone():
    """Each model trained by the plain backend in one process."""
    asked = {
        name: training(spec, small.arrays(spec), SGD, [[batch(each)] for each in INPUTS[name]], VALUES, ("state",))
        for name, spec in MODELS.items()
    }
    return dict(zip(asked, ask("oneflow", list(asked.values()))))


def same(got, want, what):
    """Losses, gradient norms, weights and state of a mesh against those of one process."""
    for i in range(len(VALUES)):
        for key in ("loss", "gradient_norm"):
            hold("degrees", distance(got[f"step{i}/{key}"], want[f"step{i}/{key}"]), f"{what}, {key} {i}")
    weights = {name for name in want if name.startswith(("final/", "state/"))}
    assert weights == {name for name in got if name.startswith(("final/", "state/"))}
    for name in weights:
        hold("degrees", distance(got[name], want[name]), f"{what}, {name}")


def mesh(degrees, questions):
    world = int(np.prod(degrees))
    return ask_ranks("oneflow", [questions(rank) for rank in range(world)], probe=TRIAL)


@pytest.mark.parametrize("name", MODELS)
def test_one_process_on_libais_layers_is_the_plain_backend(alone, name):
    same(ask("oneflow", [question(name, (1, 1, 1), 0)], probe=TRIAL)[0], alone[name], f"{name} in one part")


@pytest.mark.parametrize("degrees", DEGREES, ids=str)
def test_a_mesh_learns_what_one_process_learns(alone, degrees):
    """Stochastic depth, both poolings, soft targets, a probe with batch norm; and two micro-batches."""
    world = int(np.prod(degrees))
    asked = [(name, 1) for name in MODELS] + ([("finetune-mean", 2)] if world == 2 else [])
    answers = mesh(degrees, lambda rank: [question(name, degrees, rank, micro) for name, micro in asked])
    for i, (name, micro) in enumerate(asked):
        same(answers[0][i], alone[name], f"{name} {degrees} in {micro}")
        for other in answers[1:]:
            assert other[i]["step2/loss"] == answers[0][i]["step2/loss"]
            assert np.array_equal(
                other[i]["final/blocks.3.mlp.fc1.weight"], answers[0][i]["final/blocks.3.mlp.fc1.weight"]
            )


@pytest.mark.parametrize("degrees", [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2)], ids=str)
def test_a_compiled_mesh_learns_the_same(alone, degrees):
    answers = mesh(degrees, lambda rank: [question("finetune-mean", degrees, rank, graph=True)])
    same(answers[0][0], alone["finetune-mean"], f"graph {degrees}")


def test_a_mesh_goes_on_where_another_stopped(alone):
    """One step with tensor degree 2, the next two with pipeline degree 2 from its arrays and its optimiser's state."""

    def one(rank):
        asked = question("finetune-mean", (1, 2, 1), rank)
        return [Question("train", {**asked.given, "batches": asked.given["batches"][:1], "values": VALUES[:1]})]

    begun = mesh((1, 2, 1), one)[0][0]
    taken = {
        key: {n.partition("/")[2]: a for n, a in begun.items() if n.startswith(key)} for key in ("final/", "state/")
    }

    def rest(rank):
        asked = question("finetune-mean", (1, 1, 2), rank)
        given = {**asked.given, "batches": asked.given["batches"][1:], "values": VALUES[1:], "arrays": taken["final/"]}
        return [Question("train", {**given, "state": taken["state/"]})]

    ended = mesh((1, 1, 2), rest)[0][0]
    want = alone["finetune-mean"]
    for name in (name for name in want if name.startswith(("final/", "state/"))):
        hold("degrees", distance(ended[name], want[name]), f"handed over, {name}")


def test_processes_may_evaluate_other_numbers_of_batches(alone):
    spec = MODELS["finetune-mean"]
    images = small.inputs(spec, n=11)["images"]
    calls = [[images[:3], images[3:5], images[5:9]], [images[9:]]]
    given = {"spec": spec, "arrays": small.arrays(spec), "optimizer": SGD}
    (whole,) = ask("oneflow", [Question("evaluate", {**given, "degrees": (1, 1, 1), "calls": [images]})], probe=TRIAL)
    for degrees in ((1, 2, 1), (2, 1, 1)):
        asked = [Question("evaluate", {**given, "degrees": degrees, "calls": own}) for own in calls]
        one, two = mesh(degrees, lambda rank, asked=asked: [asked[rank]])
        got = np.concatenate([one[0]["logits"], two[0]["logits"]])
        hold("degrees", distance(got, whole["logits"]), f"logits {degrees}")
        hold("degrees", distance(one[0]["features"], whole["features"][:3]), f"features {degrees}")
        assert one[0]["calls"].ravel().tolist() == [3, 1]


def test_a_gradient_that_is_not_finite_changes_nothing():
    name, degrees = "finetune-mean", (1, 1, 2)

    def broken(rank):
        asked = question(name, degrees, rank)
        arrays = {**asked.given["arrays"]}
        arrays["head.weight"] = np.full_like(arrays["head.weight"], np.inf)
        return [Question("train", {**asked.given, "arrays": arrays})]

    for answers in mesh(degrees, broken):
        assert all(answers[0][f"step{i}/bad"] for i in range(3))
        start = small.arrays(MODELS[name])["blocks.0.mlp.fc1.weight"]
        assert np.array_equal(answers[0]["final/blocks.0.mlp.fc1.weight"], start)


# ---------------------------------------------------------------- files
@pytest.mark.parametrize(
    ("name", "layout"), [("finetune-mean", "libai-mae-finetune-0.1"), ("finetune-token", "libai-vit-0.1")]
)
def test_libai_reads_the_folders_and_so_do_we(tmp_path, name, layout):
    from weights import load_model

    spec = MODELS[name]
    arrays = small.arrays(spec)
    given = {"spec": spec, "arrays": arrays, "optimizer": SGD, "degrees": (1, 2, 1), "path": str(tmp_path / "libai")}
    for answers in mesh((1, 2, 1), lambda rank: [Question("folder", given)]):
        assert all(np.array_equal(answers[0][key], value) for key, value in arrays.items())
    back, report = load_model(tmp_path / "libai", spec, from_=layout)
    assert not report.faults() and all(np.array_equal(back[key], value) for key, value in arrays.items())


# ---------------------------------------------------------------- settings
CONFIG = """
from libai.config import LazyCall
train = dict(
    output_dir="{out}", train_epoch=3, seed=7, num_accumulation_steps=2, train_micro_batch_size=8,
    dist=dict(data_parallel_size=1, tensor_parallel_size=2, pipeline_parallel_size=2), amp=dict(enabled={amp}),
)
graph = dict(enabled=True)
finetune = dict(enable=True, weight_style="pytorch", path="{path}")
recipe = dict(name="tiny/test_mae_finetune")
model = LazyCall(print)(embed_dim=768)
"""


@pytest.fixture(scope="module")
def settled(tmp_path_factory):
    """What command lines become, by what they are about."""
    folder = tmp_path_factory.mktemp("settings")
    (folder / "mae.pth").write_bytes(b"")
    (folder / "libai").mkdir()
    text = CONFIG.format(out="runs/x", path=folder / "mae.pth", amp=False)
    (folder / "config.py").write_text(text)
    (folder / "amp.py").write_text(text.replace("amp=dict(enabled=False)", "amp=dict(enabled=True)"))
    (folder / "broken.py").write_text("train = dict(")
    lines: dict[str, list[str]] = {
        "degrees": ["tiny/x", "--tensor-parallel", "2", "--data-parallel=3"],
        "settings": [
            "tiny/x",
            "finetune.enable=true",
            "finetune.weight_style=pytorch",
            f"finetune.path={folder / 'mae.pth'}",
        ],
        "off": ["tiny/x", "--graph", "finetune.enable=False", "finetune.path=nowhere"],
        "style": ["tiny/x", "finetune.weight_style=torch", f"finetune.path={folder / 'mae.pth'}"],
        "other style": ["tiny/x", "finetune.weight_style=pytorch", f"finetune.path={folder / 'libai'}"],
        "key": ["tiny/x", "finetune.pat=x"],
        "absent": ["tiny/x", "finetune.path=nowhere.pth"],
        "twice": ["tiny/x", "--weights", "a", f"finetune.path={folder / 'mae.pth'}"],
        "config": ["--config", str(folder / "config.py")],
        "above config": [
            "tiny/x",
            "--config",
            str(folder / "config.py"),
            "--tensor-parallel",
            "4",
            "--out=mine",
            "seed=1",
        ],
        "amp": ["--config", str(folder / "amp.py")],
        "broken": ["--config", str(folder / "broken.py")],
        "no config": ["--config", str(folder / "none.py")],
        "zero": ["tiny/x", "--pipeline-parallel", "0"],
    }
    answers = ask("oneflow", [Question("settle", {"given": words}) for words in lines.values()], probe=TRIAL)
    return {"folder": str(folder), **dict(zip(lines, answers))}


def test_degrees_and_settings_become_words_of_a_run(settled):
    path = f"{settled['folder']}/mae.pth"
    assert settled["degrees"] == ["tiny/x", "3,2,1,False"]
    assert settled["settings"] == ["tiny/x", "--weights", path, "1,1,1,False"]
    assert settled["off"] == ["tiny/x", "1,1,1,True"]


def test_a_lazy_config_is_read_and_the_command_line_stands_above_it(settled):
    path = f"{settled['folder']}/mae.pth"
    words = ["--out=runs/x", "--accumulate=2", "schedule.epochs=3", "seed=7"]
    assert settled["config"] == ["tiny/test_mae_finetune", *words, "--weights", path, "1,2,2,True"]
    rest = ["--accumulate=2", "schedule.epochs=3"]
    assert set(settled["above config"]) == {*rest, "tiny/x", "--out=mine", "seed=1", "--weights", path, "1,4,2,True"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("style", ("torch", "pytorch, oneflow, triport")),
        ("other style", ("libai", "finetune.weight_style=oneflow")),
        ("key", ("finetune.pat", "Did you mean 'finetune.path'")),
        ("absent", ("nowhere.pth", "not there")),
        ("twice", ("--weights", "finetune.path", "one of them")),
        ("amp", ("train.amp.enabled",)),
        ("broken", ("broken.py", "Syntax")),
        ("no config", ("none.py",)),
        ("zero", ("whole numbers",)),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(settled, line, words):
    kind, said = settled[line]
    assert kind == "error" and "\n" not in said and all(word in said for word in words), said


def test_a_mesh_that_does_not_fit_is_one_line():
    spec = small.MODELS["finetune-mean"]  # three blocks, eight heads
    given: dict[str, Any] = {"arrays": small.arrays(spec), "optimizer": SGD}
    moco = small.MODELS["moco-vit"]
    asked = [
        Question("refusal", {**given, "spec": spec, "degrees": (1, 2, 1)}),
        Question("refusal", {**given, "spec": small.MODELS["finetune-resnet50"], "degrees": (1, 1, 1)}),
        Question("refusal", {**given, "spec": moco, "arrays": small.arrays(moco), "degrees": (1, 1, 1)}),
    ]
    processes, resnet, pretraining = ask("oneflow", asked, probe=TRIAL)
    assert "make 2 processes, started were 1" in processes
    assert "plain ViTs" in resnet and "pretrain" in pretraining
    (one,), _ = mesh((1, 1, 2), lambda rank: [Question("refusal", {**given, "spec": spec, "degrees": (1, 1, 2)})])
    assert "--pipeline-parallel 2 does not divide the 3 blocks" in one


def test_libais_names_are_those_of_its_layout():
    (found,) = ask("oneflow", [Question("names", {"spec": MODELS["finetune-mean"]})], probe=TRIAL)
    assert found["blocks.0.attn.qkv.weight"] == "blocks.0.self_attention.query_key_value.weight"
    assert found["fc_norm.bias"] == "norm.bias" and found["head.weight"] == "head.weight"
