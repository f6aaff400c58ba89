"""Processes of PyTorch on one machine: what goes over sockets or through shared memory is what gloo gives."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from triport import environments

pytest.importorskip("torch", reason="these are tests of PyTorch's backend: run them in its environment")

SCRIPT = """
import sys
import torch
import torch.distributed as dist
from triport.backends.torch import distributed
from triport.core.backend import local_peers

processes = distributed.start("cpu")
assert processes.peers is not None, "no sockets on one machine"
rank, sent = processes.rank, []
known = processes.peers.gather
processes.peers.gather = lambda own: sent.append(len(own)) or known(own)
draw = torch.Generator().manual_seed(rank)
wide = torch.randn(6, 8, generator=draw, dtype=torch.float64)
tensors = {
    "float32": wide.float(), "float64": wide, "bfloat16": wide.bfloat16(), "float16": wide.half(),
    "int64": torch.arange(5) + 10 * rank, "uint8": torch.arange(4, dtype=torch.uint8) + rank,
    "a number": torch.tensor(1.25 * (rank + 1)), "turned": wide.float().T, "every other": wide.float()[::2, 1::3],
    "with gradient": wide.float().requires_grad_() * 2, "channels last": wide.float().view(1, 2, 4, 6).contiguous(
        memory_format=torch.channels_last),
}
for name, value in tensors.items():
    want = value.detach().clone()
    dist.all_reduce(want)
    found = processes.reduce(value.detach().clone(memory_format=torch.preserve_format))
    assert found.dtype == want.dtype and found.shape == want.shape and torch.equal(found, want), (name, found, want)
    if value.dim():
        every = [torch.empty_like(value.detach().contiguous()) for _ in range(2)]
        dist.all_gather(every, value.detach().contiguous())
        rows = processes.gather_rows(value)
        assert torch.equal(rows, torch.cat(every)) and not rows.requires_grad, name
assert torch.equal(processes.gather_rows(torch.tensor([[rank == 1]])), torch.tensor([[False], [True]]))
assert len(sent) == 2 * len(tensors)  # a reduction and a gathering each; a number is not gathered; and a truth
large = torch.full((local_peers.LARGEST // 8 + 1,), float(rank + 1))
assert float(processes.reduce(large)[0]) == 3.0 and len(sent) == 2 * len(tensors)  # by gloo
assert processes.gather_rows(torch.empty(0, 3)).shape == (0, 3)
processes.barrier("end")
processes.stop()
assert processes.peers is None
print("all well", flush=True)
"""


@pytest.fixture
def short():
    """A folder with a short name: a socket's path has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)


GRADIENTS = """
import sys
from dataclasses import replace
import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from triport.backends.torch import distributed, learner, shared_gradients
from triport.core.backend.learner import settled
from triport.core.backend.probe import recipe_around
from triport.core.model.schedule import Values
from triport.core.spec import OptimizerSpec
from triport.parity_tests.tool import small
from triport.parity_tests.tool.questions import batch

processes = distributed.start("cpu")
torch.set_num_threads(1)
rank, sgd = processes.rank, OptimizerSpec(kind="sgd", lr=1.0, weight_decay=0.01, decays="all", momentum=0.9)
adamw = OptimizerSpec(kind="adamw", lr=1.0, weight_decay=0.1, decays="all", average=0.9)
cases = {
    "moco-vit": (adamw, 1, "float64"), "moco-conv": (sgd, 2, "float32"), "moco-resnet18": (sgd, 1, "bfloat16"),
    "moco-resnet50": (replace(sgd, kind="lars"), 1, "float32"), "mae": (replace(adamw, clip_norm=1e-3), 2, "float32"),
    "probe-vit": (sgd, 1, "float32"), "finetune-token": (replace(adamw, clip_norm=1e-3), 1, "float16"),
}
if processes.world > 2:  # gloo's ring adds up in an order of its own, from which AdamW makes much of a gradient near 0
    cases = {"moco-vit": (sgd, 1, "float64"), "moco-conv": (sgd, 2, "float64"), "mae": (sgd, 1, "float64")}


def same(one, other):
    return one == other if processes.world == 2 else np.allclose(one, other, rtol=1e-9, atol=1e-12)


for name, (optimizer, micro, precision) in cases.items():
    spec, answers = small.MODELS[name], []
    for shares in (True, False):
        made = learner.Learner(recipe_around(spec, optimizer), small.arrays(spec), processes, precision=precision)
        share = shared_gradients.share
        if not shares:
            learner.shared_gradients.share = lambda *given: None
        losses = []
        for step in range(3):
            given = [batch(small.inputs(spec, n=4, seed=100 * step + 10 * i + rank)) for i in range(micro)]
            result = settled(made.step(given, Values(0.02, 0.9)))
            losses.append((result.loss, result.gradient_norm))
        learner.shared_gradients.share = share
        assert (made.shared is not None) == shares and isinstance(made.run, DistributedDataParallel) != shares, name
        answers.append((losses, {**made.arrays(), **made.optimizer_arrays()}))
    (losses, arrays), (others, known) = answers
    assert np.all(same(losses, others)), (name, losses, others)
    different = [n for n in arrays if not np.all(same(arrays[n], known[n]))]
    assert arrays.keys() == known.keys() and not different, (name, different)
    words = sum(float(array.astype("float64").sum()) for array in arrays.values() if array.ndim > 1)
    everyone = processes.gather_rows(torch.tensor([words], dtype=torch.float64))
    assert (everyone == everyone[0]).all(), name  # nobody's weights went another way
processes.stop()
print("all well", flush=True)
"""


@pytest.mark.parametrize("script, world", [(SCRIPT, 2), (GRADIENTS, 2), (GRADIENTS, 3)])
def test_what_stays_on_the_machine_is_what_gloo_gives(script, world, short):
    ranks = []
    for rank in range(world):
        place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "TRIPORT_STORE": short / "store"}
        variables = {**os.environ, "TMPDIR": str(short), **{name: str(value) for name, value in place.items()}}
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-c", script], env=environments.with_project(variables),
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    for process in ranks:
        out, error = process.communicate()
        assert out == "all well\n", error
    assert list(short.glob("triport-*")) == []


def test_what_an_import_of_oneflow_leaves_is_no_rank():
    program = "from triport.backends.torch import distributed as d; here = d.start('cpu'); print(here.rank, here.world)"
    variables = environments.with_project({**os.environ, "RANK": "-1", "WORLD_SIZE": "1", "LOCAL_RANK": "-1"})
    printed = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=True)
    assert printed.stdout == "0 1\n"
