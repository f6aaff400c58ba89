"""The online probe and pictures on each framework here: they change no bit of the training, and go on to the same."""

from __future__ import annotations

import json
from importlib import import_module

import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator

from triport.core.record import checkpoint
from triport.parity_tests.fixtures import toy

OFF = ("monitor.probe=false", "monitor.baselines=false", "monitor.pictures=false")
KINDS = {"moco": "tiny/test_moco_vit", "mae": "tiny/test_mae_vit", "resnet": "tiny/test_moco_resnet"}
SMALL = ("batch=16", "epochs=2", "warmup=0", "monitor.knn_neighbours=5")


@pytest.fixture(scope="session")
def framework(probe):
    return probe.__name__.split(".")[2]


def pretrain(framework, kind, out, *more):
    """12 steps on the toy images; of the ResNet 2."""
    stop = ("--stop-after-steps", "2") if kind == "resnet" and "--stop-after-steps" not in more else ()
    size = ("image=16",) if kind == "resnet" else ("image=8",)
    given = (KINDS[kind], *SMALL, *size, "--data", str(toy.shared_data()), "--workers", "0", "--out", str(out))
    words = [str(word) for word in (*given, *stop, *more)]
    assert import_module(f"triport.backends.{framework}.pretrain").main(words) == 0
    return out


def curve(run, tag):
    """The values of a curve as TensorBoard reads them."""
    reader = event_accumulator.EventAccumulator(str(run))
    reader.Reload()
    return [event.value for event in reader.Scalars(tag)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_training_has_the_same_bits_with_and_without(framework, kind, tmp_path):
    watched, bare = pretrain(framework, kind, tmp_path / "a"), pretrain(framework, kind, tmp_path / "b", *OFF)
    losses = [[line["loss"] for line in toy.metrics(run)] for run in (watched, bare)]
    assert losses[0] == losses[1] and len(losses[0]) == (2 if kind == "resnet" else 12)
    arrays, other = (checkpoint.load(checkpoint.latest(run))[0] for run in (watched, bare))
    for group in ("model", "optimizer"):
        assert all(np.array_equal(array, other[group][name]) for name, array in arrays[group].items())
    assert "probe" not in other and np.abs(arrays["probe"]["weight"]).max() > 0
    lines = toy.metrics(watched)
    assert curve(watched, "step/probe_loss") == [np.float32(line["probe_loss"]) for line in lines]
    assert all(line["probe_loss"] > 0 for line in lines) and lines[0]["probe_loss"] == pytest.approx(np.log(10))
    if kind != "resnet":
        scores = toy.metrics(watched, "epoch")
        assert [line["epoch"] for line in scores if "probe" in line] == [0, 1, 2]
        assert curve(watched, "epoch/probe") == [np.float32(line["probe"]) for line in scores if "probe" in line]
        assert (watched / "reconstructions" / "epoch_2.png").is_file() == (kind == "mae")
        assert {"chance", "raw pixels"} <= json.loads((watched / "baselines.json").read_text()).keys()


def test_a_resumed_probe_has_the_same_bits(framework, tmp_path):
    whole = pretrain(framework, "mae", tmp_path / "whole")
    parts = pretrain(framework, "mae", tmp_path / "parts", "--stop-after-steps", "5")
    pretrain(framework, "mae", parts, "--resume", str(parts))
    toy.assert_same_run(whole, parts)
    assert "probe" in checkpoint.load(checkpoint.latest(whole))[0]
