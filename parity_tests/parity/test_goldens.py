"""The original code's recorded numbers, reached by each framework here; and what a replay refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from triport import environments
from triport.core.errors import UserError
from triport.parity_tests.tool import __main__ as program
from triport.parity_tests.tool import cases, replay, replay_case
from triport.parity_tests.tool.bounds import LIMITS, hold

FILES = sorted(cases.GOLDENS.glob("*.safetensors"))


@pytest.mark.parametrize("path", [p for p in FILES if p.stem != "augment"], ids=lambda p: p.stem)
def test_a_backend_reaches_the_goldens(probe, path):
    """The first steps; `triport parity replay` takes all of them."""
    backend = probe.__name__.split(".")[2]
    findings = replay.replay(path, backend, steps=2 if path.stem.startswith("mae") and "f64" in path.stem else 1)
    assert len(findings) >= 1 and all(f.count for f in findings)
    for f in findings:
        hold(f.bound, f.error, f"{path.stem} {f.group} {f.worst}")


def test_augmentations_reach_the_goldens():
    finding = replay.augmentation(cases.GOLDENS / "augment.safetensors")
    assert finding.count == 16
    hold(finding.bound, finding.error, finding.worst)


def changed(tmp_path, name, edit):
    """A golden file with something changed in it."""
    source = cases.GOLDENS / f"{name}.safetensors"
    arrays, meta = load_file(source), dict(cases.read(source).meta)
    edit(arrays, meta)
    path = tmp_path / f"{name}.safetensors"
    save_file(arrays, path, {"meta": json.dumps(meta)})
    return path


def test_a_wrong_record_is_found_and_named(probe, tmp_path):
    backend = probe.__name__.split(".")[2]

    def edit(arrays, meta):
        arrays["eval/logits"] = arrays["eval/logits"] + 1e-4 * np.abs(arrays["eval/logits"]).max()

    (finding,) = replay.replay(changed(tmp_path, "lincls-vit_small", edit), backend)
    assert not finding.passed and finding.worst == "logits"
    assert 0.5e-4 < finding.error < 2e-4


def test_not_a_number_is_over_every_bound():
    finding = replay_case.worst("outputs", "forward-full", {"a": 0.0, "b": float("nan")})
    assert finding.worst == "b" and not finding.passed


@pytest.mark.parametrize("content", [b"", b"nothing that is a golden file", b"\x10" * 64])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match="golden"):
        replay.kind(path)
    with pytest.raises(UserError, match="no golden file"):
        replay.kind(tmp_path / "absent.safetensors")


def test_the_command_replays_on_several_frameworks(capfd):
    """Each in its own interpreter, wherever the command is given."""
    here = [name for name in environments.FRAMEWORKS if environments.interpreter(name)]
    path = str(cases.GOLDENS / "augment.safetensors")
    assert program.main(["replay", path, "--json", "--backends", ",".join(here)]) == 0
    message = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [line["backend"] for line in message] == here and all(line["findings"][0]["passed"] for line in message)


def test_the_commands_mistakes_are_reported_at_once(tmp_path, capsys):
    (tmp_path / "x.safetensors").write_bytes(b"no golden")
    for words, printed in (
        (["nothing.safetensors"], "no golden file at nothing.safetensors"),
        ([str(tmp_path / "x.safetensors")], "is not a golden file"),
        (["--backend", "torhc"], "Did you mean 'torch'"),
    ):
        assert program.main(["replay", *words]) == 2
        assert printed in capsys.readouterr().err


# ---------------------------------------------------------------- the form of float64 records
def small_case(name="moco-vit_small-f64", losses=4, **meta):
    """A case of the right form, of a size that no test computes."""
    given = {"temperature": 0.2, "momentum": 0.99, "optimizer": "adamw", "lr": 1e-4, "weight_decay": 0.1, "batch": 2}
    keys = {"base_encoder.pos_embed": [1, 197, 384], "base_encoder.head.1.num_batches_tracked": []}
    given |= {"case": name, "arch": name.split("-")[1], "dtype": "float64", "keys": keys, **meta}
    record = {f"step{i}/loss": np.array([2.0 - i / 10]) for i in range(losses)}
    return cases.Case(name, "moco", given, cases.model("moco", given), cases.optimiser(given), record)


def test_a_record_in_float64_draws_its_position_tables_and_converts_all_values():
    case = small_case()
    arrays, table = case.arrays(), cases.tensor("base_encoder.pos_embed", (1, 197, 384))
    assert case.precision == "float64" and arrays["base_encoder.pos_embed"].dtype == np.float64
    assert np.array_equal(arrays["base_encoder.pos_embed"], table)
    assert arrays["base_encoder.head.1.num_batches_tracked"].dtype == np.int64
    inputs = case.inputs()
    assert inputs["view2"].dtype == np.float64 and np.array_equal(inputs["view2"], cases.images("view2", 2))
    fixed = small_case(dtype="float32").arrays()["base_encoder.pos_embed"]
    assert fixed.dtype == np.float32 and np.abs(fixed - table).max() > 0.5


def test_losses_of_a_resnet_with_lars_may_grow_a_hundredfold_at_each_step():
    vit = small_case()
    lars = small_case("moco-resnet50-f64", optimizer="lars", temperature=1.0)
    answer = {name: loss[0] * (1 + 3e-10) for name, loss in vit.record.items()}
    first, later = replay_case.losses(vit, answer, 4)
    assert not first.passed and not later.passed and later.limit == 1e-10
    found = replay_case.losses(lars, answer, 4)
    assert [f.limit for f in found] == pytest.approx([1e-11, 1e-11, 1e-9, 1e-7])
    assert [f.passed for f in found] == [False, False, True, True]


def test_a_resnet_may_miss_its_record_by_some_times_what_another_order_of_the_batch_does():
    case = small_case("moco-resnet50-f64", losses=2, optimizer="lars", temperature=1.0)
    case.record.update({name: np.ones((2, 3)) for name in replay_case.ROWS_OF_A_BATCH})
    first = case.inputs()["view1"]

    class Probe:
        """Off by `fault` in any order, and by rounding that depends on it."""

        def __init__(self, fault):
            self.fault = fault

        def train(self, spec, arrays, optimizer, steps, values, saved, precision):
            rounded = 4e-10 if np.array_equal(steps[0][0].images[0], first) else 2e-10
            losses = {f"step{i}/loss": case.record[f"step{i}/loss"][0] for i in range(2)}
            losses["step1/loss"] = losses["step1/loss"] * (1 + rounded + self.fault)
            return {**losses, **{name: np.ones((2, 3)) for name in replay_case.ROWS_OF_A_BATCH}}

    for fault, passed in ((0.0, True), (1e-8, False)):
        found = {f.group: f for f in replay_case.training(case, Probe(fault))}
        later = found["loss of step 2"]
        assert later.passed == passed and later.eased and later.limit == pytest.approx(30 * 2e-10, rel=1e-3)
        assert found["first loss"].passed and not found["first loss"].eased


def test_what_is_0_in_truth_has_an_absolute_bound():
    case, zero = small_case(), 3e-15
    case.record.update({"g_norm/a": np.array([1e-16]), "g_head/a": np.full(4, 5e-17)})
    case.record.update({"g_norm/b": np.array([2.0]), "g_head/b": np.ones(4)})
    norms, heads, null = replay_case.tensors(
        case, "g", {"a": np.array([zero]), "b": np.ones(4)}, "gradients", "golden64-tensor"
    )
    assert norms.passed and heads.passed and null.passed and (null.worst, null.error) == ("a", zero)
    off = replay_case.tensors(
        case, "g", {"a": np.array([1e-11]), "b": np.ones(4) * (1 + 2e-9)}, "gradients", "golden64-tensor"
    )
    assert [f.passed for f in off] == [False, False, False]
    broken = replay_case.tensors(case, "g", {"a": np.array([np.nan]), "b": np.ones(4)}, "gradients", "golden64-tensor")
    assert not broken[2].passed


def test_other_number_types_are_refused(tmp_path):
    def edit(arrays, meta):
        meta["dtype"] = "float16"

    with pytest.raises(UserError, match="recorded in float16"):
        cases.read(changed(tmp_path, "lincls-vit_small", edit))


def test_every_finding_has_a_limit():
    names = {name for rows in replay_case.ROWS.values() for name in rows if name}
    names |= {"golden64-zero", "golden64-lars", "golden64-lars-weight", "golden-rule", "golden-pixel"}
    assert names <= set(LIMITS)
