"""What PyTorch's backend does for GPUs, tried on a CPU: late reports, staging, scaling, recomputing, compiling."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from triport.core.augment import pixels
from triport.core.backend.learner import settled
from triport.core.errors import UserError
from triport.core.model import masking
from triport.core.model.schedule import Values
from triport.core.model.spread import spread
from triport.core.spec import OptimizerSpec
from triport.parity_tests.tool import small
from triport.parity_tests.tool.questions import batch

torch = pytest.importorskip("torch", reason="these are tests of PyTorch's backend: run them in its environment")
if torch:
    from torch.utils._python_dispatch import TorchDispatchMode

    from triport.backends.torch import compiled, distributed, feed, learner, report, scaling
    from triport.core.backend.probe import recipe_around

SGD = OptimizerSpec(kind="sgd", lr=1.0, weight_decay=0.01, decays="all", momentum=0.9)
ADAMW = OptimizerSpec(kind="adamw", lr=1.0, weight_decay=0.1, decays="all", average=0.9, clip_norm=0.5)
LARS = replace(SGD, kind="lars")


def made(name, optimizer, late=False, **more):
    spec = small.MODELS[name]
    built = learner.Learner(recipe_around(spec, optimizer), small.arrays(spec), distributed.start("cpu"), **more)
    built.late = built.late or late
    return built, batch(small.inputs(spec))


def same(first, second, tolerance=0.0):
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_allclose(array, second[name], rtol=tolerance, atol=tolerance, err_msg=name)


# ---------------------------------------------------------------- a step that nobody waits for
@pytest.mark.parametrize(("name", "optimizer"), [("moco-vit", SGD), ("mae", ADAMW), ("moco-resnet18", LARS)])
def test_a_late_step_is_the_same_step(name, optimizer):
    (now, data), (late, _) = (made(name, optimizer, late, precision="float64") for late in (False, True))
    for values in (Values(0.1, 0.9), Values(0.05, 0.95), Values(0.02, 0.99)):
        message, pending = now.step([data], values), late.step([data], values, (0, 3))
        assert not isinstance(pending, type(message))
        found = settled(pending)
        assert found.flags == (0, 3) and found.bad is None and found.loss == pytest.approx(message.loss, rel=1e-12)
        assert found.gradient_norm == pytest.approx(message.gradient_norm, rel=1e-5)
        assert found.first_layer_gradient == pytest.approx(message.first_layer_gradient, rel=1e-5)
        assert found.extras == pytest.approx(message.extras, rel=1e-5)
    same(now.arrays(), late.arrays(), 1e-11)
    same(now.optimizer_arrays(), late.optimizer_arrays(), 1e-11)


@pytest.mark.parametrize("optimizer", [SGD, ADAMW, LARS])
def test_a_late_step_changes_no_weight_where_something_is_not_finite(optimizer):
    built, data = made("mae", optimizer, late=True)
    settled(built.step([data], Values(0.1, 0.0)))
    arrays, state = built.arrays(), built.optimizer_arrays()
    broken = batch({**small.inputs(small.MODELS["mae"]), "images": data.images[0] * np.float32(np.nan)})
    pending = built.step([broken], Values(0.1, 0.0))
    after, unmoved = built.arrays(), built.optimizer_arrays()
    second = built.step([data], Values(0.1, 0.0))
    assert settled(pending).bad == "loss"
    same(arrays, after)
    counted = {name for name in state if name != "step" or optimizer is ADAMW}  # the others' rules count nothing
    same({name: state[name] for name in counted}, {name: unmoved[name] for name in counted})
    assert len(counted) > 1 and settled(second).bad is None
    assert any(not np.array_equal(array, after[name]) for name, array in built.arrays().items())


def test_an_update_after_a_skipped_one_counts_the_updates_alone():
    plain, data = made("mae", replace(ADAMW, average=None))
    other, _ = made("mae", replace(ADAMW, average=None), late=True)
    broken = batch({**small.inputs(small.MODELS["mae"]), "images": data.images[0] * np.float32(np.inf)})
    for learning in (plain, other):
        settled(learning.step([data], Values(0.1, 0.0)))
    assert settled(other.step([broken], Values(0.1, 0.0))).bad == "loss"
    for learning in (plain, other):
        settled(learning.step([data], Values(0.1, 0.0)))
    same(plain.arrays(), other.arrays(), 1e-6)


def test_the_first_gradient_that_is_not_finite_is_named():
    numbers = torch.tensor([1.0, *[float("inf"), 0.0, float("nan"), 1.0, 1.0], 2.0, float("inf"), float("nan")])
    found = report.Report(numbers, None, ["a", "b", "c"], 0, 1, False).result()
    assert found.bad == "b" and found.extras == {}


def test_numbers_of_several_ranks_are_averaged_and_flags_are_the_largest():
    numbers = torch.tensor([1.0, 0.0, 15.0, 3.0, 10.0, 0.0, *[1.0, 0.5, 0.25, 0.0, 1.0]])
    found = report.Report(numbers, None, [], 2, 2, False).result()
    assert found.loss == 2.0 and found.flags == (10, 15) and found.extras == {"spread": 0.25}


def test_the_spread_on_the_device_is_the_one_of_core():
    features = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    assert float(report.spread(torch.from_numpy(features))) == pytest.approx(spread(features), rel=1e-7)


# ---------------------------------------------------------------- float16
def test_float16_learns_as_float32_does_and_scales_its_loss():
    (plain, data), (half, _) = made("mae", SGD), made("mae", SGD, precision="float16")
    one, other = plain.step([data], Values(0.1, 0.0)), settled(half.step([data], Values(0.1, 0.0)))
    assert other.loss == pytest.approx(one.loss, rel=1e-2)
    if not other.extras["skipped"]:
        assert other.gradient_norm == pytest.approx(one.gradient_norm, rel=5e-2)


def test_gradients_that_overflow_halve_the_scale_and_change_nothing():
    built, data = made("mae", SGD, precision="float16")
    built.scaling.scale.fill_(1e30)
    before = built.arrays()
    found = settled(built.step([data], Values(0.1, 0.0)))
    assert found.bad is None and found.extras["skipped"] == 1 and float(built.scaling.scale) < 1e30
    same(before, built.arrays())


def test_a_scale_goes_on_from_a_checkpoint_to_the_same_bits():
    whole, data = made("mae", SGD, precision="float16")
    whole.scaling.scale.fill_(2.0**40)  # overflows, more than once
    steps = [settled(whole.step([data], Values(0.1, 0.0))).extras["skipped"] for _ in range(2)]
    assert steps == [1, 1]
    resumed, _ = made("mae", SGD, precision="float16")
    resumed.load(whole.arrays(), whole.optimizer_arrays())
    assert float(resumed.scaling.scale) == 2.0**38
    for learning in (whole, resumed):
        learning.scaling.scale.fill_(1024.0)
        assert settled(learning.step([data], Values(0.1, 0.0))).extras == pytest.approx(
            {"loss_scale": 1024.0, "skipped": 0}
        )
    same(whole.arrays(), resumed.arrays())
    again, _ = made("mae", SGD, precision="float16")
    again.load(whole.arrays(), whole.optimizer_arrays())
    same(whole.optimizer_arrays(), again.optimizer_arrays())
    assert whole.optimizer_arrays()["loss_scale"].tolist() == [1024.0, 1.0]
    plain, _ = made("mae", SGD)
    plain.load(whole.arrays(), whole.optimizer_arrays())
    whole.load(plain.arrays(), plain.optimizer_arrays())
    assert "loss_scale" not in plain.optimizer_arrays() and float(whole.scaling.scale) == 1024.0


def test_the_scale_grows_after_many_good_steps():
    made_up = scaling.Scaling(torch.device("cpu"))
    for _ in range(scaling.PATIENCE):
        gradients = [torch.full((2,), float(made_up.scale))]
        found = made_up.unscale(gradients)
        made_up.update(found)
        assert float(found) == 0 and gradients[0].tolist() == [1, 1]
    assert float(made_up.scale) == 2 * scaling.FIRST_SCALE


# ---------------------------------------------------------------- bfloat16
class Casts(TorchDispatchMode):
    """Counts what is cast to bfloat16, by memory."""

    def __init__(self):
        super().__init__()
        self.seen: Counter[int] = Counter()

    def __torch_dispatch__(self, func, types, given=(), named=None):
        if func is torch.ops.aten._to_copy.default and (named or {}).get("dtype") == torch.bfloat16:
            self.seen[given[0].data_ptr()] += 1
        return func(*given, **(named or {}))


@pytest.mark.parametrize("name", ["moco-vit", "moco-conv", "moco-resnet18"])
def test_weights_are_cast_once_in_a_step_also_those_of_the_momentum_encoder(name):
    built, data = made(name, SGD, precision="bfloat16")
    built.step([data], Values(0.1, 0.9))
    with Casts() as casts:
        built.step([data], Values(0.1, 0.9))
    places = {n: p.data_ptr() for n, p in built.model.named_parameters()}
    counts = {n: casts.seen[place] for n, place in places.items() if casts.seen[place]}
    matrices = [n for n, p in built.model.named_parameters() if p.dim() > 1 and n.endswith("weight")]
    assert {n for n in counts if n.startswith("momentum_encoder.")} >= {n for n in matrices if n.startswith("momentum")}
    # of the last block's qkv each use takes a part, which autocast does not remember; a conv stem's views come apart
    cut = "blocks.2.attn.qkv" if name == "moco-conv" else "no such name"
    assert not {n: count for n, count in counts.items() if count > 1 and cut not in n}
    assert not any(p.requires_grad for p in built.model.momentum_encoder.parameters())


# ---------------------------------------------------------------- the way to the device
class Traced:
    """A device of memory: copies arrive when somebody waits for them."""

    def __init__(self):
        self.calls, self.open = [], {}

    def pinned(self, like):
        return torch.empty_like(like)

    def begin(self, source):
        mark, copy = len(self.open), torch.full_like(source, 7)
        self.open[mark] = (source, copy)
        self.calls.append(f"begin {mark}")
        return copy, mark

    def finish(self, mark):
        source, copy = self.open[mark]
        copy.copy_(source)  # reads the pinned memory as late as a device might
        self.calls.append(f"finish {mark}")

    def use(self, copy, mark):
        self.finish(mark)


def numbered(number):
    """A batch that is known by its label."""
    return batch({**small.inputs(small.MODELS["finetune-token"], n=1), "labels": np.array([number])})


def test_pinned_memory_is_used_again_only_when_the_copy_out_of_it_is_done():
    transfer = Traced()
    fed = feed.Feed(transfer, lambda batch: {"x": np.full(3, batch.labels[0], np.float32)})
    staged = [fed.stage(numbered(number)) for number in range(4)]
    assert transfer.calls == ["begin 0", "begin 1", "finish 0", "begin 2", "finish 1", "begin 3"]
    assert [fed.take(one)["x"][0].item() for one in staged[2:]] == [2, 3]
    assert [next(iter(one.copies.values()))[0][0].item() for one in staged[:2]] == [0, 1]


def test_batches_are_staged_when_they_are_asked_for():
    transfer, asked = Traced(), []

    def steps():
        for number in range(2):
            asked.append(number)
            yield [numbered(number), numbered(number)]

    fed = feed.Feed(transfer, lambda batch: {"x": np.full(2, batch.labels[0], np.uint8)})
    ahead = fed.ahead(steps())
    first = next(ahead)
    assert asked == [0] and len(first) == 2 and len(transfer.calls) == 2
    next(ahead)
    assert asked == [0, 1]


def test_bytes_become_the_same_bits_on_the_device():
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), np.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    table = torch.from_numpy(pixels.table(mean, std, 3).copy())
    found = feed.normalised(torch.from_numpy(images), table)
    assert np.array_equal(found.numpy(), pixels.normalise(images, mean, std))
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_a_mask_on_the_device_is_the_one_of_core():
    noise = np.round(masking.noise(0, 0, range(4), 49), 1)  # with many equal numbers
    there = feed.mask(torch.from_numpy(noise), masking.visible_patches(49, 0.75))
    for name, array in masking.mask(noise, 0.75)._asdict().items():
        assert np.array_equal(there[name].numpy(), array), name


def test_a_step_on_bytes_is_the_step_on_floats():
    built, data = made("mae", SGD)
    other, _ = made("mae", SGD)
    raw = np.random.default_rng(0).integers(0, 256, (*data.images[0].shape[:1], 16, 16, 3), np.uint8)
    raw = raw[:, : data.images[0].shape[2], : data.images[0].shape[3]]
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    floats = replace(data, images=(pixels.normalise(raw, mean, std),))
    given = replace(data, images=(raw,), table=pixels.table(mean, std, 3).copy())
    assert built.step([floats], Values(0.1, 0)).loss == other.step([given], Values(0.1, 0)).loss
    same(built.arrays(), other.arrays())


# ---------------------------------------------------------------- memory
@pytest.mark.parametrize("name", ["moco-vit", "mae", "finetune-token"])
def test_computing_activations_twice_changes_no_bit(name):
    (plain, data), (saving, _) = made(name, SGD), made(name, SGD, checkpoint_activations=True)
    for _ in range(2):
        assert plain.step([data], Values(0.1, 0.9)).loss == saving.step([data], Values(0.1, 0.9)).loss
    same(plain.arrays(), saving.arrays())


def test_a_resnet_has_no_blocks_to_compute_twice():
    with pytest.raises(UserError, match="--checkpoint-activations is for vision transformers"):
        made("moco-resnet18", SGD, checkpoint_activations=True)


# ---------------------------------------------------------------- compiling
class Counting(torch.nn.Module):  # type: ignore[name-defined]
    """A step with a batch norm's counter."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return {"loss": x.sum() * 2}


def started(compiler, agree=lambda well: well):
    printed: list[str] = []
    return compiled.Compiled(Counting(), "float32", agree, printed.append, compiler), printed


def test_a_compiled_step_is_taken_where_its_first_loss_is_the_plain_one():
    step, printed = started(lambda plain: lambda **given: plain(**given))
    assert step(x=torch.ones(2))["loss"] == 4 and step.plain.calls == 1
    assert step.chosen is not step.plain and step(x=torch.ones(2))["loss"] == 4 and step.plain.calls == 2
    assert printed == [compiled.BEGINS]  # once


def test_a_compiled_step_with_another_loss_or_an_error_is_left_out():
    wrong = lambda plain: lambda **given: {"loss": plain(**given)["loss"] * 1.1}  # noqa: E731
    broken = lambda plain: (_ for _ in ()).throw(RuntimeError("no compiler here\nand more"))  # noqa: E731
    for compiler, words in ((wrong, "its first loss is 4.4, not 4"), (broken, "RuntimeError: no compiler here")):
        step, printed = started(compiler)
        assert step(x=torch.ones(2))["loss"] == 4 and step.chosen is step.plain and step.plain.calls == 1
        assert printed[0] == compiled.BEGINS and words in printed[1] and "--no-compile" in printed[1]


def test_a_compiled_step_is_left_out_where_another_process_could_not():
    step, printed = started(lambda plain: lambda **given: plain(**given), agree=lambda well: False)
    assert step(x=torch.ones(2))["loss"] == 4 and step.chosen is step.plain and "another process" in printed[1]
