"""Data, tensor and pipeline degrees on LiBai's layers give the numbers of one process; files; settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from triport.core.model.schedule import Values
from triport.core.spec import OptimizerSpec, ViT
from triport.parity_tests.tool import small
from triport.parity_tests.tool.ask import Question, ask, ask_ranks
from triport.parity_tests.tool.bounds import hold
from triport.parity_tests.tool.questions import batch, distance, parts, training
from triport.weights import load_model

pytestmark = pytest.mark.framework("oneflow")
TRIAL = "triport.parity_tests.fixtures.libai_trial"
SGD = OptimizerSpec(kind="sgd", lr=0.05, weight_decay=0.01, decays="all", clip_norm=0.5, average=0.5)
VALUES = [Values(0.05, 0.0), Values(0.04, 0.0), Values(0.03, 0.0)]
DEGREES = [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (1, 2, 2), (2, 1, 2), (2, 2, 1), (2, 2, 2)]
TWO = [degrees for degrees in DEGREES if np.prod(degrees) == 2]


def deep(name, depth):
    """A small model with a number of blocks that two stages can share."""
    spec = small.MODELS[name]
    assert isinstance(spec.encoder, ViT)
    return replace(spec, encoder=replace(spec.encoder, depth=depth))


DEPTHS = {"finetune-mean": 4, "finetune-token": 2, "probe-mae": 2, "probe-vit": 2}
MODELS = {name: deep(name, depth) for name, depth in DEPTHS.items()}
INPUTS = {name: [small.inputs(spec, n=8, seed=seed) for seed in (0, 1, 2)] for name, spec in MODELS.items()}


def soft(inputs, spec):
    """The same inputs with soft targets, as Mixup makes them."""
    draw = np.random.Generator(np.random.Philox(3)).random((8, spec.objective.classes), dtype=np.float32)
    return {**inputs, "targets": draw / draw.sum(axis=1, keepdims=True)}


EVALUATED = small.inputs(MODELS["finetune-mean"], n=11)["images"]
INPUTS["finetune-token"] = [soft(each, MODELS["finetune-token"]) for each in INPUTS["finetune-token"]]


def question(name, degrees, rank, micro=1, **more):
    """The training that one process of a mesh is asked for: its part of each batch, in `micro` micro-batches."""
    world = int(np.prod(degrees))
    steps = [[batch(part) for part in parts(parts(each, world)[rank], micro)] for each in INPUTS[name]]
    spec = MODELS[name]
    given = {"spec": spec, "arrays": small.arrays(spec), "optimizer": SGD, "batches": steps, "values": VALUES}
    return Question("train", {**given, "degrees": degrees, **more})


def evaluation(degrees, rank):
    """The first process evaluates three batches, the second one; together they are all images."""
    calls = {0: [EVALUATED[:3], EVALUATED[3:5], EVALUATED[5:9]], 1: [EVALUATED[9:]]}[rank]
    given = {"spec": MODELS["finetune-mean"], "arrays": small.arrays(MODELS["finetune-mean"]), "optimizer": SGD}
    return Question("evaluate", {**given, "degrees": degrees, "calls": calls})


def broken(degrees, rank):
    """A training whose first gradient is not finite."""
    asked = question("finetune-mean", degrees, rank)
    arrays = {**asked.given["arrays"]}
    arrays["head.weight"] = np.full_like(arrays["head.weight"], np.inf)
    return Question("train", {**asked.given, "arrays": arrays})


def ranks(degrees, rank):
    """Which part of a batch a process learns."""
    return Question("ranks", {"degrees": degrees})


def written(folder, kind, degrees, rank):
    """A model in LiBai's form in a folder."""
    spec = MODELS[f"finetune-{kind}"]
    given = {"path": f"{folder}/{kind}", "spec": spec, "arrays": small.arrays(spec), "optimizer": SGD}
    return Question("folder", {**given, "degrees": degrees})


def begun(degrees, rank):
    """The first step alone."""
    given = question("finetune-mean", degrees, rank).given
    return Question("train", {**given, "batches": given["batches"][:1], "values": VALUES[:1]})


def continued(degrees, rank, answer):
    """The steps after the first, from the arrays and the optimiser's state that another mesh gave."""
    taken = {
        key: {n.partition("/")[2]: a for n, a in answer.items() if n.startswith(key)} for key in ("final/", "state/")
    }
    given = question("finetune-mean", degrees, rank).given
    rest = {"batches": given["batches"][1:], "values": VALUES[1:], "arrays": taken["final/"], "state": taken["state/"]}
    return Question("train", {**given, **rest})


@pytest.fixture(scope="module")
def alone():
    """Each model trained by the plain backend in one process, and the same on LiBai's layers in one part."""
    asked: dict[Any, Question] = {
        name: training(spec, small.arrays(spec), SGD, [[batch(each)] for each in INPUTS[name]], VALUES, ("state",))
        for name, spec in MODELS.items()
    }
    spec = MODELS["finetune-mean"]
    given = {"spec": spec, "arrays": small.arrays(spec), "inputs": {"images": EVALUATED}}
    asked["float64"] = Question("train", {**asked["finetune-mean"].given, "precision": "float64"})
    return dict(zip([*asked, "forward"], ask("oneflow", [*asked.values(), Question("forward", given)])))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a mesh leaves LiBai's folders."""
    return tmp_path_factory.mktemp("libai")


@pytest.fixture(scope="module")
def meshes(folder):
    """Every mesh is started once, when it is first asked for: degrees -> rank -> what was asked -> its answer."""
    known: dict[tuple[int, ...], list[dict[Any, Any]]] = {}

    def answers(degrees):
        if degrees in known:
            return known[degrees]
        world = int(np.prod(degrees))
        names = {4: ("finetune-mean", "probe-mae"), 8: ("finetune-mean",)}.get(world, tuple(MODELS))
        asked: dict[str, Callable[..., Question]] = {name: partial(question, name) for name in names}
        asked["ranks"] = ranks
        if world < 4:
            asked["graph"] = partial(question, "finetune-mean", graph=True)
            asked["float64"] = partial(question, "finetune-mean", precision="float64")
            asked["float64 graph"] = partial(question, "finetune-mean", precision="float64", graph=True)
        if world == 2:
            asked["two micro-batches"] = partial(question, "finetune-mean", micro=2)
            asked["evaluation"] = evaluation
        if degrees == (1, 2, 1):
            asked["begun"] = begun
            asked |= {f"folder {kind}": partial(written, str(folder), kind) for kind in ("mean", "token")}
        if degrees == (1, 1, 2):
            first = answers((1, 2, 1))[0]["begun"]
            asked |= {"continued": partial(continued, answer=first), "broken": broken}
        given = [[make(degrees, rank) for make in asked.values()] for rank in range(world)]
        known[degrees] = [{} for _ in range(world)]  # one failure is enough: it is not asked again
        known[degrees] = [
            dict(zip(asked, of_rank)) for of_rank in ask_ranks("oneflow", given, probe=TRIAL, timeout=300)
        ]
        return known[degrees]

    return answers


def same(got, want, what, bound="training"):
    """Losses, gradient norms, weights, their averages and state of a mesh against those of one process.

    The first momentum is the gradient of each parameter by name, so the state holds every gradient.
    """
    for i in range(len(VALUES)):
        for key in ("loss", "gradient_norm"):
            hold(bound, distance(got[f"step{i}/{key}"], want[f"step{i}/{key}"]), f"{what}, {key} {i}")
    weights = {name for name in want if name.startswith(("final/", "state/"))}
    assert weights == {name for name in got if name.startswith(("final/", "state/"))}
    for name in weights:
        hold(bound, distance(got[name], want[name]), f"{what}, {name}")


def test_a_graph_is_told_of_half_precision_and_a_cpu_has_none():
    spec = MODELS["finetune-mean"]
    given = {"spec": spec, "arrays": small.arrays(spec), "optimizer": SGD}
    (found,) = ask("oneflow", [Question("halves", given)], probe=TRIAL)
    assert found["float32"].startswith("False") and found["bfloat16"].startswith("True")
    for precision in ("bfloat16", "float16"):
        assert f"OneFlow 0.9.0 has no {precision} on CPUs" in found[f"{precision} on a CPU"]
    assert "--shard is an option of the backend torch" in found["shard"]


@pytest.mark.parametrize("degrees", DEGREES, ids=str)
def test_a_mesh_learns_what_one_process_of_the_plain_backend_learns(alone, meshes, degrees):
    """Stochastic depth, both poolings, soft targets, a probe with batch norm."""
    answers = meshes(degrees)
    for name in (name for name in MODELS if name in answers[0]):
        same(answers[0][name], alone[name], f"{name} {degrees}")
        for other in answers[1:]:
            for key in ("step2/loss", "final/blocks.1.mlp.fc1.weight"):
                assert np.array_equal(other[name][key], answers[0][name][key])


@pytest.mark.parametrize("degrees", [d for d in DEGREES if np.prod(d) < 4], ids=str)
def test_a_compiled_mesh_learns_the_same(alone, meshes, degrees):
    same(meshes(degrees)[0]["graph"], alone["finetune-mean"], f"graph {degrees}")


@pytest.mark.parametrize("degrees", [d for d in DEGREES if np.prod(d) < 4], ids=str)
@pytest.mark.parametrize("mode", ["float64", "float64 graph"])
def test_a_mesh_in_float64_learns_the_same(alone, meshes, degrees, mode):
    got = meshes(degrees)[0][mode]
    same(got, alone["float64"], f"{mode} {degrees}", "float64")
    assert got["final/blocks.0.attn.qkv.weight"].dtype == np.float64


def test_a_graph_that_would_not_move_a_heads_statistics_is_refused():
    spec = MODELS["probe-mae"]
    given = {"spec": spec, "arrays": small.arrays(spec), "optimizer": SGD, "degrees": (1, 1, 1), "graph": True}
    (printed,) = ask("oneflow", [Question("refusal", given)], probe=TRIAL)
    assert "does not move the statistics of the batch norm before this head: leave out --graph" in printed


@pytest.mark.parametrize("degrees", TWO, ids=str)
def test_gradients_add_up_over_micro_batches(alone, meshes, degrees):
    same(meshes(degrees)[0]["two micro-batches"], alone["finetune-mean"], f"{degrees} in two")


def test_a_mesh_goes_on_where_another_stopped(alone, meshes):
    """One step with tensor degree 2, the next two with pipeline degree 2."""
    ended, want = meshes((1, 1, 2))[0]["continued"], alone["finetune-mean"]
    for name in (name for name in want if name.startswith(("final/", "state/"))):
        hold("training", distance(ended[name], want[name]), f"handed over, {name}")


@pytest.mark.parametrize("degrees", TWO, ids=str)
def test_processes_may_evaluate_other_numbers_of_batches(alone, meshes, degrees):
    one, two = (answers["evaluation"] for answers in meshes(degrees))
    got = np.concatenate([one["logits"], two["logits"]])
    hold("training", distance(got, alone["forward"]["logits"]), f"logits {degrees}")
    hold("training", distance(one["features"], alone["forward"]["features"][:3]), f"features {degrees}")
    assert one["calls"].ravel().tolist() == [3, 1]


def test_a_gradient_that_is_not_finite_changes_nothing(meshes):
    for answers in meshes((1, 1, 2)):
        assert all(answers["broken"][f"step{i}/bad"] for i in range(3))
        for name in ("blocks.0.mlp.fc1.weight", "blocks.3.norm1.bias"):
            assert np.array_equal(answers["broken"][f"final/{name}"], small.arrays(MODELS["finetune-mean"])[name])


# ---------------------------------------------------------------- LiBai's own
def test_libais_word_for_the_data_rank_is_ours(meshes):
    """As it is, LiBai tells both replicas of a pipeline the same."""
    found = [answers["ranks"] for answers in meshes((2, 1, 2))]
    assert [rank["repaired"] for rank in found] == [rank["ours"] for rank in found] == [0, 1, 0, 1]
    assert [rank["as it is"] for rank in found] != [0, 1, 0, 1], "LiBai counts rightly now: the repair can go"


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    """What LiBai's evaluator counts and what its trainer resumes, repaired and as they are."""
    asked = [Question("counts", {"most": 16}), Question("resumed", {"folder": str(tmp_path_factory.mktemp("faults"))})]
    return dict(zip(("counts", "resumed"), ask("oneflow", asked, probe="triport.parity_tests.fixtures.libai_faults")))


def test_libais_evaluator_counts_every_right_answer(faults):
    assert faults["counts"]["repaired"] == []
    assert 3 in faults["counts"]["as it is"], "LiBai counts rightly now: the repair can go"


def test_libais_trainer_resumes_at_the_next_image(faults):
    found = faults["resumed"]
    assert np.array_equal(found["repaired"], found["whole"])
    assert not np.array_equal(found["as it is"], found["whole"]), "LiBai keeps its place now: the repair can go"


@pytest.mark.parametrize(("name", "layout"), [("mean", "libai-mae-finetune-0.1"), ("token", "libai-vit-0.1")])
def test_libai_reads_the_folders_and_so_do_we(meshes, folder, name, layout):
    spec = MODELS[f"finetune-{name}"]
    arrays = small.arrays(spec)
    for answers in meshes((1, 2, 1)):
        assert all(np.array_equal(answers[f"folder {name}"][key], value) for key, value in arrays.items())
    back, report = load_model(folder / name, spec, from_=layout)
    assert not report.faults() and all(np.array_equal(back[key], value) for key, value in arrays.items())
