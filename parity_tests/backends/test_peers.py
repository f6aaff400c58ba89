"""Two processes of Paddle or OneFlow on one machine: what goes past the framework's collectives is what they give.

PyTorch's are in test_torch_peers.py.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from triport import environments, launch

SCRIPT = """
import sys
from importlib import import_module
import numpy as np
from triport.parity_tests.tool import small

name, out = sys.argv[1:]
part = lambda word: import_module(f"triport.backends.{name}.{word}")
processes = part("distributed").start("cpu")
assert processes.world == 2 and processes.peers is not None, "no sockets on one machine"
peers, sent = processes.peers, []
known = peers.gather
peers.gather = lambda own: sent.append(len(own)) or known(own)
draw = np.random.default_rng(processes.rank)
for precision in ("float32", "float64"):
    tensors = part("tensors").Tensors(small.MODELS["mae"], processes.device, precision)
    numbers = [draw.standard_normal(shape).astype(precision) for shape in ((300, 7), (1,), (2, 3, 4, 5), (), (200000,))]
    several = []
    for shared in (True, False, True):
        processes.peers = peers if shared else None
        values = [tensors.from_host(array.copy()) for array in numbers]
        before = len(sent)
        processes.average(values, tensors)
        assert (len(sent) > before) == shared
        several.append([tensors.to_host(value) for value in values])
        each = [processes.gather(array[None]) for array in numbers]
        for value, array in zip(several[-1], each):
            assert value.dtype == precision and np.array_equal(value, array.mean(0)), (precision, value.shape)
        rows = processes.gather_rows(tensors.from_host(numbers[0]))
        assert np.array_equal(tensors.to_host(rows), np.concatenate(each[0]))
        total = tensors.to_host(processes.reduce(tensors.from_host(numbers[0].copy())))
        assert np.array_equal(total, each[0].sum(0)), precision
assert processes._memories.keys() == {("float32", 202222), ("float64", 202222)}
whole = processes.gather(np.arange(3 + processes.rank))
assert whole.tolist() == [0, 1, 2, 0, 1, 2, 3]
processes.stop()
assert processes.peers is None
with open(f"{out}-{processes.rank}", "w") as file:
    file.write("all well")
"""


@pytest.mark.parametrize(
    "framework", [pytest.param(name, marks=pytest.mark.framework(name)) for name in ("paddle", "oneflow")]
)
def test_what_stays_on_the_machine_is_what_the_framework_gives(framework, tmp_path):
    script, python = tmp_path / "script.py", str(environments.require(framework))
    script.write_text(SCRIPT)
    port = ["--master_port", launch.free_port()]
    more = ["--log_dir", str(tmp_path / "logs")] if framework == "paddle" else port
    command = [python, "-m", f"{framework}.distributed.launch", "--nproc_per_node", "2", *more, str(script)]
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as short:  # a socket's path has 107 bytes at most
        variables = environments.with_project({**os.environ, "TMPDIR": short})
        words = [*command, framework, str(tmp_path / "rank")]
        ran = subprocess.run(words, env=variables, capture_output=True, text=True)
        assert list(Path(short).glob("triport-*")) == []
    logs = "".join(path.read_text() for path in Path(tmp_path).glob("logs/worker*"))
    assert [path.read_text() for path in sorted(tmp_path.glob("rank-*"))] == ["all well"] * 2, ran.stderr + logs
