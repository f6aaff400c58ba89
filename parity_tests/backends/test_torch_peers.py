"""Two processes of PyTorch on one machine: what goes over sockets is what gloo would give, for any tensor."""

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


def test_small_messages_are_those_of_gloo(short):
    ranks = []
    for rank in range(2):
        place = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "TRIPORT_STORE": short / "store"}
        variables = {**os.environ, "TMPDIR": str(short), **{name: str(value) for name, value in place.items()}}
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT], env=environments.with_project(variables),
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    for process in ranks:
        out, error = process.communicate()
        assert out == "all well\n", error
    assert list(short.glob("triport-*")) == []
