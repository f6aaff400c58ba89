"""The harness itself: answers, and a clear message for everything that can go wrong in another process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triport import environments
from triport.core.errors import UserError
from triport.core.model.schedule import Values
from triport.core.spec import ModelSpec
from triport.parity_tests.conftest import here
from triport.parity_tests.tool import parcel, small
from triport.parity_tests.tool.ask import Crashed, Hung, Missing, Question, Raised, ask, ask_ranks

PROBE = "triport.parity_tests.fixtures.fake_probe"
FAKE: dict[str, Any] = {"probe": PROBE, "python": Path(sys.executable)}


@pytest.fixture(autouse=True)
def folders(tmp_path_factory, monkeypatch):
    """Where the folders of asks go, which stay after a failure."""
    folder = tmp_path_factory.mktemp("asks")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def fake(function, backend="torch", timeout=60.0, **given):
    return ask(backend, [Question(function, given)], timeout=timeout, **FAKE)[0]


# ---------------------------------------------------------------- values that travel
def test_values_come_back_as_they_went(tmp_path):
    spec = small.MODELS["finetune-token"]
    arrays = {
        "a/b": np.arange(6.0, dtype=np.float32).reshape(2, 3).T,
        "count": np.array(3, np.int64),
        "none": np.zeros(0),
    }
    values = {"spec": spec, "arrays": arrays, "values": [Values(0.1, 0.9)], "record": ("gradients",), "nothing": None}
    parcel.write(values, tmp_path / "value.json", tmp_path / "value.safetensors")
    back = parcel.read(tmp_path / "value.json", tmp_path / "value.safetensors")
    assert isinstance(back["spec"], ModelSpec) and back["spec"] == spec and hash(back["spec"]) == hash(spec)
    assert back["values"] == [Values(0.1, 0.9)] and isinstance(back["values"][0], Values)
    assert back["record"] == ("gradients",) and back["nothing"] is None
    for name, array in arrays.items():  # transposed, of no dimensions, empty
        assert back["arrays"][name].dtype == array.dtype and back["arrays"][name].shape == array.shape
        assert np.array_equal(back["arrays"][name], array)


def test_what_cannot_travel_is_named():
    with pytest.raises(TypeError, match="a/0 is a set"):
        parcel.pack({"a": [{1}]}, {})
    with pytest.raises(TypeError, match="subprocess:Popen is not a class of core"):
        parcel.unpack({"class": "subprocess:Popen", "fields": {"args": "ls"}}, {})


# ---------------------------------------------------------------- answers
def test_one_process_answers_many_questions_in_order():
    x = np.arange(3.0)
    answers = ask("torch", [Question("echo", {"x": x}), Question("double", {"x": x}), Question("threads")], **FAKE)
    assert np.array_equal(answers[0]["x"], x) and np.array_equal(answers[1], 2 * x) and answers[2] == "1"


def test_the_folder_stays_if_it_is_asked_for_and_goes_otherwise(tmp_path, folders):
    fake("echo")
    assert not list(folders.iterdir())
    ask("torch", [Question("echo")], keep=tmp_path / "kept", **FAKE)
    names = ["answer.safetensors", "ask.json", "ask.safetensors", "log.txt", "stack.txt"]
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == names


# ---------------------------------------------------------------- no answers
def test_an_exception_is_reported_with_its_place_and_question():
    with pytest.raises(
        Raised, match=r"torch failed at 'fail': ValueError: a plain mistake \(fake_probe.py:\d+ in fail\)"
    ):
        fake("fail")


def test_what_a_framework_refuses_is_reported_word_for_word():
    with pytest.raises(Raised, match=r"^no such precision here\. Take float32\.$"):
        fake("refuse")


def test_a_function_that_a_probe_lacks_is_named():
    with pytest.raises(Raised, match=r"failed at 'forwards'.*no attribute 'forwards'"):
        fake("forwards")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_crash_is_reported_with_its_signal(number):
    with pytest.raises(Crashed, match=f"torch was ended by {number.name}") as caught:
        fake("crash", number=int(number))
    if number == signal.SIGSEGV:
        assert "in crash" in str(caught.value)  # the stack, from the log
    else:
        assert "out of memory" in str(caught.value)


def test_an_exit_without_an_answer_is_reported_with_its_code():
    with pytest.raises(Crashed, match="ended with exit code 7 and left no answer"):
        fake("leave")


def test_a_process_that_hangs_is_ended_and_says_where_it_stood(folders):
    with pytest.raises(
        Hung, match=r"gave no answer in \d+ s and was ended; it stood at File .*fake_probe.py.* in hang"
    ):
        fake("hang", timeout=4)
    (folder,) = folders.iterdir()  # kept after a failure
    assert str(folder) not in running()


def running() -> str:
    return subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True).stdout


def test_a_worker_does_not_outlive_who_asked(tmp_path):
    text = f"""
import sys
from pathlib import Path
from triport.parity_tests.tool.ask import Question, ask
how = dict(probe="triport.parity_tests.fixtures.fake_probe", python=Path(sys.executable), keep=Path({str(tmp_path)!r}))
ask("torch", [Question("hang")], **how)
"""
    asking = subprocess.Popen([sys.executable, "-c", text], cwd=environments.ROOT)
    worker = f"triport.parity_tests.tool.worker {tmp_path}"
    try:
        wait_until(lambda: worker in running())
    finally:
        asking.kill()
        asking.wait()
    wait_until(lambda: worker not in running())


def wait_until(true, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_two_processes_answer_by_rank_and_a_dead_one_is_not_waited_for(pytestconfig):
    here("torch", pytestconfig)
    answers = ask_ranks("torch", [[Question("who")]] * 2, probe=PROBE, timeout=300)
    assert answers == [[{"RANK": "0", "WORLD_SIZE": "2"}], [{"RANK": "1", "WORLD_SIZE": "2"}]]
    with pytest.raises(Crashed, match=r"(?s)Fatal Python error: Segmentation fault.* in crash_on_one"):
        ask_ranks("torch", [[Question("crash_on_one")]] * 2, probe=PROBE, timeout=300)


def test_a_missing_environment_comes_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIPORT_VENVS", str(tmp_path))
    monkeypatch.setattr(environments, "is_here", lambda framework: False)
    with pytest.raises(Missing, match=r"OneFlow is not set up here. Remedy: triport setup oneflow"):
        ask("oneflow", [Question("forward")])


def test_a_framework_that_cannot_be_imported_is_missing_too():
    with pytest.raises(Missing, match=r"paddle cannot be imported by its interpreter\. Remedy: triport setup paddle"):
        fake("lack", backend="paddle", module="paddle.nowhere")  # wherever the tests run
    with pytest.raises(Raised, match="No module named 'nowhere'"):  # anything else is a mistake
        fake("lack", backend="paddle", module="nowhere")


def test_an_unknown_backend_is_reported_with_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'torch'"):
        ask("torhc", [])


# ---------------------------------------------------------------- --require
SKIPPED = """
def test_it(backend):
    assert backend
"""


@pytest.mark.parametrize(("words", "outcome"), [([], "3 skipped"), (["--require=torch,paddle"], "1 skipped, 2 errors")])
def test_a_missing_framework_skips_unless_it_is_required(tmp_path, words, outcome):
    message = pytest_with_nothing(tmp_path, words)
    assert outcome in message.stdout, message.stdout
    assert "Remedy: triport setup paddle" in message.stdout
    assert message.returncode == (1 if words else 0)


def test_an_unknown_required_framework_is_an_error_of_use(tmp_path):
    message = pytest_with_nothing(tmp_path, ["--require=torsh"])
    assert message.returncode == 4 and "Did you mean 'torch'?" in message.stdout + message.stderr


def pytest_with_nothing(folder: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a test that wants every backend where no framework is set up."""
    (folder / "test_it.py").write_text(SKIPPED)
    conftest = (Path(__file__).parents[1] / "conftest.py").read_text()
    (folder / "conftest.py").write_text(f"{conftest}\n\nenvironments.is_here = lambda framework: False\n")
    environment = {**os.environ, "TRIPORT_VENVS": str(folder / "none"), "PYTHONPATH": str(environments.ROOT)}
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
