"""What all tests share: `--require`, the `backend` of the parity levels, compiled kernels, no process left behind."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from triport import environments
from triport.core.augment import native
from triport.core.errors import UserError
from triport.parity_tests.fixtures import leftover, plain_report
from triport.parity_tests.tool.bounds import LIMITS, MEASURED

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# Files whose tests take longest. They start first, so that no worker is left alone with one of them at the end.
LONGEST = (
    "triport/test_demo.py",
    "backends/test_resume_across.py",
    "backends/test_runs.py",
    "backends/test_oneflow_libai_runs.py",
    "backends/test_verbs.py",
    "weights/test_resume.py",
    "parity/test_levels_between.py",
    "parity/test_levels_model.py",
    "parity/test_reference_goldens.py",
    "triport/test_cluster_scripts.py",
    "triport/test_foreign_runs.py",
    "triport/test_jobs.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --require."""
    text = "frameworks that must be here, separated by commas: their tests fail where they would be skipped"
    parser.addoption("--require", default="", metavar="NAMES", help=text)
    parser.addoption("--own", action="store_true", help="only tests that need a framework in this very interpreter")


def required(config: pytest.Config) -> list[str]:
    """The frameworks that must be here. An unknown name is an error of use."""
    names = [name for name in str(config.getoption("--require")).split(",") if name]
    try:
        return [environments.known(name) for name in names]
    except UserError as error:
        raise pytest.UsageError(f"--require: {error}") from None


def pytest_configure(config: pytest.Config) -> None:
    """Look at --require before any test runs; compile the kernels, as a set-up does, since a test only loads them."""
    required(config)
    share_cores(config)
    leftover.begin()
    native.build()


def share_cores(config: pytest.Config) -> None:
    """Give each of several workers its share of the cores: more threads than cores wait for each other, spinning.

    Before the workers start, since the libraries read it when they are loaded. What the shell says stays.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers := len(getattr(config.option, "tx", None) or ()):
        for name in THREADS:
            os.environ.setdefault(name, str(max(1, cores // workers)))


def rank(item: pytest.Item) -> int:
    """The place of a test's file among those that start first."""
    file = "/".join(item.path.parts[-2:])
    return LONGEST.index(file) if file in LONGEST else len(LONGEST)


@pytest.hookimpl(tryfirst=True)
def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With --own, do not even import files in which no test can be meant."""
    if config.getoption("--own") and collection_path.name.startswith("test_"):
        text = collection_path.read_text("utf-8")
        return True if not any(word in text for word in ("probe", "mark.inside")) else None
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Longest files first. With --own, leave out what runs alike in every environment, or asks each framework there."""
    items.sort(key=rank)  # a stable sort: all else stays in its order
    if config.getoption("--own"):
        own = [
            item for item in items if "probe" in getattr(item, "fixturenames", ()) or item.get_closest_marker("inside")
        ]
        config.hook.pytest_deselected(items=[item for item in items if item not in own])
        items[:] = own


def here(name: str, config: pytest.Config) -> str:
    """The framework's name; where it is not set up the test is skipped with the remedy, or fails if it is required."""
    try:
        environments.require(name)
        return name
    except UserError as error:
        lacking = str(error)
    if name in required(config):
        pytest.fail(lacking, pytrace=False)
    pytest.skip(lacking)


@pytest.hookimpl(tryfirst=True)  # before any fixture asks the framework
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that is marked framework("X") where X is not set up, or fail it if X is required.

    Runs in this process draw figures only for tests that are marked so.
    """
    plain_report.choose(drawn=item.get_closest_marker("draws") is not None)
    for mark in item.iter_markers("framework"):
        here(environments.known(mark.args[0]), item.config)


@pytest.fixture(autouse=True)
def ends_its_processes() -> Iterator[None]:
    """End what a test has started, however it ends; what goes on by itself fails the test."""
    before = leftover.left()
    yield
    if rest := leftover.ended(before):
        pytest.fail(f"processes were left behind: {rest}", pytrace=False)


@pytest.fixture(autouse=True, scope="session")
def no_process_is_left() -> Iterator[None]:
    """The same for the whole session, with what wider fixtures have started."""
    yield
    if rest := leftover.ended(()):
        pytest.fail(f"processes were left behind by the session: {rest}", pytrace=False)


@pytest.fixture(autouse=True, scope="module")
def gives_memory_back() -> Iterator[None]:
    """Give the system what this file's tests have freed: runs in this process ask glibc to keep it, and tests go on."""
    yield
    gc.collect()
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(params=environments.FRAMEWORKS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each framework in turn."""
    return here(request.param, request.config)


@pytest.fixture(scope="session")
def torch(request: pytest.FixtureRequest) -> ModuleType:
    """PyTorch in this very interpreter; without it the test is skipped with the remedy, or fails if it is required."""
    if find_spec("torch"):
        return import_module("torch")
    lacking = "PyTorch is not in this interpreter: run the tests in .venvs/torch"
    if "torch" in required(request.config):
        pytest.fail(lacking, pytrace=False)
    pytest.skip(lacking)


@pytest.fixture(scope="session", params=[name for name in environments.FRAMEWORKS if find_spec(name)] or ["none"])
def probe(request: pytest.FixtureRequest) -> ModuleType:
    """The probe of each framework that this very interpreter can import; each environment runs these tests itself."""
    if request.param == "none":
        pytest.skip("no framework in this interpreter: run the tests in .venvs/<framework>")
    return import_module(f"triport.backends.{request.param}.probe")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the largest error that this run saw under each bound of the parity levels."""
    for bound, (error, what) in MEASURED.items():
        terminalreporter.write_line(f"{bound}: {error:.2g} of {LIMITS[bound]:.0e} ({what})")
