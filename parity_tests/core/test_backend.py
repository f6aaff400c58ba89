"""What core/backend does for every framework, with numpy in a framework's place."""

from __future__ import annotations

import threading
from contextlib import nullcontext

import numpy as np
import pytest

from triport.core.backend import base_processes, objectives
from triport.core.backend.base_optimizer import BaseOptimizer
from triport.core.backend.base_processes import BaseProcesses
from triport.core.backend.build import check, first_layer, lowered, trainable
from triport.core.backend.recorder import recording
from triport.core.backend.tensors import Tensors
from triport.core.data.batches import Batch
from triport.core.errors import UserError
from triport.core.model.groups import Group
from triport.core.model.spread import spread
from triport.core.spec import OptimizerSpec
from triport.parity_tests.core.test_local_peers import folders
from triport.parity_tests.tool import small

assert folders  # a fixture
SGD = OptimizerSpec(kind="sgd", lr=0.1, weight_decay=0.0, decays="all")


class Array(np.ndarray):
    """A numpy array with a gradient."""

    grad = None


def array(*values):
    return np.array(values, np.float32).view(Array)


class Host(Array):
    """As a framework has it on a CPU."""

    def numpy(self):
        return np.array(self)


class NumpyTensors(Tensors):
    """Arrays for tensors. Linear weights are transposed, as on Paddle: matrices called "w"."""

    kind = Array

    def layout(self, arrays):
        return {k: a.T if k.rpartition("/")[2] == "w" else a for k, a in arrays.items()}

    def from_host(self, array):
        return self.typed(array).view(Array)

    def to_host(self, tensor):
        return np.array(tensor)

    def copy_into(self, target, source):
        target[...] = source

    def swap(self, first, second):
        first[...], second[...] = np.array(second), np.array(first)

    def follow(self, slow, fast, momentum):
        raise NotImplementedError

    def clip(self, parameters, norm, limit):
        raise NotImplementedError

    def zeros_like(self, tensor):
        return np.zeros_like(tensor).view(Array)

    def concatenate(self, tensors):
        return np.concatenate(list(tensors))

    def norm(self, tensor):
        return np.asarray(np.linalg.norm(tensor))

    def is_finite(self, tensor):
        return bool(np.isfinite(tensor).all())

    def no_grad(self):
        return nullcontext()

    def retain_gradient(self, tensor):
        tensor.grad = np.ones_like(tensor)


TENSORS = NumpyTensors(small.MODELS["finetune-token"], "cpu")


# ---------------------------------------------------------------- tensors
def test_floats_get_the_models_type_and_whole_numbers_stay_whole():
    for precision, floats in (("float32", np.float32), ("bfloat16", np.float32), ("float64", np.float64)):
        tensors = NumpyTensors(TENSORS.spec, "cpu", precision)
        assert tensors.typed(np.ones(2, np.float32)).dtype == floats
        assert tensors.typed(np.ones(2, np.float64)).dtype == floats
        assert tensors.typed(np.ones(2, np.int32)).dtype == np.int64
    same = np.ones(2, np.float32)
    assert TENSORS.typed(same) is same


def test_arrays_come_and_go_in_the_canonical_layout():
    stored = {"w": array([1, 2, 3], [4, 5, 6]), "mu/w": array([1, 2, 3], [4, 5, 6]), "b": array(1, 2)}
    arrays = TENSORS.arrays(stored)
    assert arrays["w"].shape == arrays["mu/w"].shape == (3, 2) and arrays["b"].tolist() == [1, 2]
    TENSORS.fill(stored, {name: 2 * a for name, a in arrays.items()})
    assert np.array(stored["w"]).tolist() == [[2, 4, 6], [8, 10, 12]] and arrays["w"][0, 1] == 4
    assert TENSORS.joint_norm([array(3, 0), array(4)]) == 5


# ---------------------------------------------------------------- optimizer
class Plain(BaseOptimizer):
    slots = ("mu",)

    def update(self, values, gradients, slots, lr, decay):
        for value, gradient, mu in zip(values, gradients, *slots):
            mu += gradient
            value -= lr * mu + decay


def test_an_optimizer_scales_decays_and_skips_by_group():
    parameters = {"a": array(1.0), "b": array(1.0), "c": array(1.0), "frozen": array(1.0)}
    rules = {"a": Group(1.0, 0.0), "b": Group(0.5, 0.25), "c": Group(0.5, 0.25)}
    optimizer = Plain(parameters, rules, SGD, TENSORS)
    assert [names for _, names in optimizer.groups] == [["a"], ["b", "c"]]
    for name in ("a", "b", "frozen"):
        parameters[name].grad = array(1.0)
    optimizer.step(0.5)
    assert [float(p[0]) for p in parameters.values()] == [0.5, 0.5, 1.0, 1.0]
    state = optimizer.arrays()
    assert set(state) == {"step", "mu/a", "mu/b", "mu/c"} and int(state["step"]) == 1 and state["mu/c"] == 0
    other = Plain(parameters, rules, SGD, TENSORS)
    other.load(state)
    assert other.steps == 1 and other.state["mu"]["a"] == 1
    with pytest.raises(UserError, match="lacks 'mu/b'"):
        other.load({name: a for name, a in state.items() if name != "mu/b"})


# ---------------------------------------------------------------- processes
class Threads(BaseProcesses):
    """A process in a thread, whose collectives go through a list that all of them have."""

    def __init__(self, rank, world, places, gate):
        super().__init__(rank, world, "cpu")
        self.places, self.gate, self.messages = places, gate, 0

    def barrier(self, tag):
        self.gate.wait(20)

    def gather_rows(self, rows):
        self.places[self.rank] = np.array(rows)
        self.gate.wait(20)
        every = list(self.places)
        self.gate.wait(20)
        return np.concatenate(every)

    def gather_arrays(self, rows):
        return self.gather_rows(rows)

    def reduce(self, value):
        self.messages += 1
        return self.gather_rows(value[None]).sum(axis=0).view(Array)

    def stop(self):
        pass


def together(world, work):
    """What `work(processes)` returns in each of several threads."""
    places, gate, answers = [None] * world, threading.Barrier(world), [None] * world

    def run(rank):
        answers[rank] = work(Threads(rank, world, places, gate))

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return answers


@pytest.mark.parametrize("counts", [(2, 2), (3, 0), (0, 1), (0, 0)])
def test_ranks_gather_other_numbers_of_rows(counts):
    def work(processes):
        rows = np.full((counts[processes.rank], 2), processes.rank, np.int64)
        return processes.gather(rows)

    for answer in together(2, work):
        assert answer.shape == (sum(counts), 2) and answer.dtype == np.int64
        assert answer[:, 0].tolist() == [0] * counts[0] + [1] * counts[1]


def test_one_process_gathers_its_own_rows():
    rows = np.arange(3)
    assert Threads(0, 1, [None], None).gather(rows) is rows


@pytest.mark.parametrize(("message", "messages"), [(1 << 25, 1), (4, 2), (1, 3)])
def test_means_over_processes_come_in_as_few_messages_as_fit(monkeypatch, message, messages):
    monkeypatch.setattr(base_processes, "MESSAGE", message)

    def work(processes):
        values = [np.full(shape, float(processes.rank), np.float32).view(Array) for shape in ((2, 2), (), (3,))]
        processes.average(values, TENSORS)
        return values, processes.messages

    for values, sent in together(2, work):
        assert sent == messages and [v.shape for v in values] == [(2, 2), (), (3,)]
        assert all((v == 0.5).all() for v in values)


@pytest.mark.parametrize("world", [2, 3])
def test_means_over_processes_of_one_machine_need_no_message(world, folders):
    """Nor new memory for the same tensors; others have their own, and half precision takes the messages."""

    def work(processes):
        processes.find_peers()
        found = []
        for dtype in (np.float32, np.float32, np.float64, np.float16):
            values = [np.full(shape, 3.0 * processes.rank, dtype).view(Host) for shape in ((2, 2), (), (3,))]
            processes.average(values, TENSORS)
            found.append((values, processes.messages, len(processes._memories)))
        processes.leave_peers()
        assert processes.peers is None and not processes._memories
        return found

    for found in together(world, work):
        assert [(messages, memories) for _, messages, memories in found] == [(0, 1), (0, 1), (0, 2), (1, 2)]
        for values, _, _ in found:
            assert [v.shape for v in values] == [(2, 2), (), (3,)] and all(
                (v == 1.5 * (world - 1)).all() for v in values
            )


def test_processes_with_gradients_of_different_sizes_end_with_a_line(folders):
    def work(processes):
        processes.find_peers()
        sizes = (2, 3) if processes.rank else (3, 2)
        with pytest.raises(RuntimeError, match="gradients of different parameters"):
            processes.average([np.ones(size, np.float32).view(Host) for size in sizes], TENSORS)
        processes.leave_peers()
        return True

    assert together(2, work) == [True, True]


# ---------------------------------------------------------------- models
@pytest.mark.parametrize("name", ["moco-vit", "probe-resnet18"])
def test_arrays_of_another_model_are_refused_by_name(name):
    spec = small.MODELS[name]
    arrays = small.arrays(spec)
    check(spec, arrays)
    first = next(iter(arrays))
    with pytest.raises(UserError, match=f"lack '{first}'"):
        check(spec, {n: a for n, a in arrays.items() if n != first})
    with pytest.raises(UserError, match=rf"'{first}' has shape \(1, 1\)"):
        check(spec, {**arrays, first: np.ones((1, 1))})
    with pytest.raises(UserError, match="hold 'more', which the model does not have"):
        check(spec, {**arrays, "more": np.ones(1)})


def test_the_first_trained_layer_is_watched():
    assert first_layer(small.MODELS["mae"]) == "patch_embed.proj.weight"
    assert first_layer(small.MODELS["probe-vit"]) == "head.weight"
    frozen = trainable(small.MODELS["moco-vit"])
    assert not any(trains for name, trains in frozen.items() if name.startswith("momentum_encoder."))


def test_fewer_digits_are_reported():
    arrays: dict[str, np.ndarray] = {"a": np.ones(1), "b": np.ones(1, np.float32), "c": np.ones(1, np.int64)}
    assert lowered(arrays, "float32").startswith("1 arrays are float64 and are used as float32, 'a' first")
    assert lowered(arrays, "bfloat16") and lowered(arrays, "float64") == "" and lowered({"b": arrays["b"]}, "") == ""


def test_labels_that_no_class_has_are_refused():
    spec, labels = small.MODELS["finetune-token"], np.array([0, 99])
    batch = Batch((np.zeros((2, 3, 8, 8), np.float32),), labels, None, np.arange(2), None, None)
    with pytest.raises(UserError, match="labels from 0 to 99 do not fit the model's 7 classes"):
        objectives.inputs(spec, batch)
    fine = objectives.inputs(spec, Batch(batch.images, labels % 7, None, batch.indices, None, None))
    assert set(fine) == {"images", "labels"}


def test_one_row_has_a_spread_and_it_is_none():
    assert spread(np.array([[3.0, 4.0]])) == 0.0
    rows = np.array([[1.0, 0.0], [0.0, 2.0]])
    assert spread(rows) == pytest.approx(0.5 * np.sqrt(2))  # deviations of 0.5, not of 0.5 * sqrt(2)


# ---------------------------------------------------------------- recorder
class Module:
    def __init__(self, function, **parts):
        self.function, self.parts = function, parts

    def children(self):
        return iter(self.parts.values())

    def forward(self, x):
        for part in self.parts.values():
            x = part.forward(x)
        return self.function(x)

    def named_modules(self, prefix=""):
        yield prefix, self
        for name, part in self.parts.items():
            yield from part.named_modules(f"{prefix}.{name}".strip("."))


def test_a_recording_has_outputs_inputs_and_later_calls():
    first, second = Module(lambda x: x + 1), Module(lambda x: (x * 2).view(Array))
    model = Module(lambda x: x, inner=Module(lambda x: x, first=first, second=second))
    with recording(model, TENSORS, gradients=True) as seen:
        model.forward(array(1.0))
        model.forward(array(5.0))
    names = ["inner.first/input", "inner.first", "inner.second", "inner"]
    assert list(seen) == [f"layers/{name}" for name in names] + [f"layers/{name}@2" for name in names]
    assert seen["layers/inner.second@2"] == 12 and seen["layers/inner.first"].grad is not None
    assert "forward" not in vars(first)


def test_a_recording_that_fails_leaves_the_model_as_it_was():
    fails = Module(lambda x: 1 / 0)
    model = Module(lambda x: x, fails=fails)
    before = vars(fails)["forward"] = fails.forward  # somebody's own
    with pytest.raises(ZeroDivisionError), recording(model, TENSORS):
        model.forward(array(1.0))
    assert vars(fails)["forward"] is before and "forward" not in vars(model)
