"""Environments: interpreters, whole and half-made states, two set-ups at once, uv, lock files. Downloads nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from triport import environments, installer, pythons, setup
from triport.core.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder for environments."""
    monkeypatch.setenv("TRIPORT_VENVS", str(tmp_path / "venvs"))
    return tmp_path / "venvs"


# ---------------------------------------------------------------- interpreters
def program(path: Path, text: str) -> Path:
    """Write an executable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home without any interpreter: PATH, home and version managers are empty folders."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("PYENV_ROOT", "ASDF_DATA_DIR", "UV_PYTHON_INSTALL_DIR", "CONDA_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pythons, "FOLDERS", [folder for folder in pythons.FOLDERS if folder[0] in "~{"])
    return tmp_path


def test_a_shim_that_fails_does_not_count(nowhere: Path) -> None:
    program(nowhere / "bin" / "python3.8", "echo 'python3.8: command not found' >&2; exit 127")
    assert pythons.find(("3.8",)) is None
    real = program(nowhere / ".pyenv/versions/3.8.13/bin/python3.8", "echo 3.8")
    assert pythons.find(("3.8",)) == real


def test_the_newest_release_comes_first(nowhere: Path) -> None:
    for release in ("3.8.9", "3.8.13", "3.8.2"):
        program(nowhere / ".pyenv/versions" / release / "bin/python3.8", "echo 3.8")
    found = pythons.find(("3.8",))
    assert found is not None and "3.8.13" in found.parts


def test_an_interpreter_of_another_version_does_not_count(nowhere: Path) -> None:
    program(nowhere / "bin" / "python3.8", "echo 3.9")
    program(nowhere / ".asdf/installs/python/3.8.1/bin/python3.8", "exit 1")
    assert pythons.find(("3.8",)) is None


def test_versions_in_their_order(nowhere: Path) -> None:
    program(nowhere / "bin" / "python3.8", "echo 3.8")
    second = program(nowhere / "bin" / "python3.7", "echo 3.7")
    assert pythons.find(("3.7", "3.8")) == second


def test_uv_fetches_what_is_not_here(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = program(nowhere / "uv-made" / "python3.10", "echo 3.10")
    lines = f'echo "$@" >> {nowhere}/calls; test "$1" != --version || echo uv 99.1; test "$2" != find || echo {fetched}'
    program(nowhere / "bin" / "uv", lines)
    monkeypatch.setenv("PATH", f"{nowhere / 'bin'}:{os.defpath}")
    monkeypatch.setattr(setup.pythons, "find", lambda versions: None)
    installer.uv.cache_clear()
    try:
        assert setup.choose_python("oneflow") == fetched
    finally:
        installer.uv.cache_clear()
    assert "python install 3.10" in (nowhere / "calls").read_text()


def test_this_interpreter_is_found_beneath_an_environment(nowhere: Path) -> None:
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    found = pythons.find((version,))
    assert found is not None and pythons.works(found, version)
    if sys.prefix != sys.base_prefix:
        assert not found.is_relative_to(sys.prefix)


@pytest.fixture
def no_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that could have OneFlow, without an interpreter for it and without a network."""
    monkeypatch.setattr(environments.platform, "system", lambda: "Linux")
    monkeypatch.setattr(environments.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(setup.pythons, "find", lambda versions: None)

    def uv(*words: str, silent: bool = False) -> None:
        raise UserError("no network")

    monkeypatch.setattr(setup, "uv", uv)
    real = setup.make
    monkeypatch.setattr(setup, "make", lambda name: real(name) if name == "oneflow" else ("works", f"made {name}"))


@pytest.mark.usefixtures("no_python")
def test_no_interpreter_says_how_to_get_one_and_the_others_go_on(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert setup.main(["oneflow", "torch"]) == 1
    printed = capsys.readouterr()
    assert "conda create -n python3.10" in printed.err and "pyenv install 3.10" in printed.err
    assert re.search(r"oneflow +does not work +no working Python 3\.10 was found\n", printed.out)
    assert "made torch" in printed.out
    assert not (home / "oneflow").exists()


@pytest.mark.usefixtures("no_python")
def test_what_a_machine_cannot_have_is_left_out_with_one_loud_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert setup.main(["--where-possible", "torch", "oneflow"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("*** OneFlow IS LEFT OUT: no working Python 3.10 was found")
    monkeypatch.setattr(environments.platform, "machine", lambda: "arm64")
    assert setup.main(["--where-possible", "torch", "oneflow"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("*** OneFlow IS LEFT OUT: OneFlow 0.9.0 has wheels for Linux on x86-64 only")


def test_what_is_possible_and_fails_is_not_left_out(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(name: str) -> tuple[str, str]:
        raise UserError("no space")

    monkeypatch.setattr(setup, "make", make)
    assert setup.main(["--where-possible", "oneflow"]) == 1


def test_an_installed_package_says_how_to_install_the_extras(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environments, "CHECKOUT", False)
    with pytest.raises(
        UserError, match=r"this is an installed package\. Instead: .* -m pip install 'triport\[paddle\]'"
    ):
        setup.main(["paddle"])
    assert not home.exists() and capsys.readouterr().out == ""


# ---------------------------------------------------------------- states
def finished(home: Path, framework: str = "torch") -> Path:
    """An environment as a set-up leaves it, without anything in it."""
    folder = environments.begin(framework)
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(sys.executable)
    environments.write_stamp(framework)
    return folder


def test_states(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert environments.state("torch") == "absent"
    folder = environments.begin("torch")
    assert environments.state("torch") == "half-made"
    folder = finished(home)
    assert environments.state("torch") == "ready"
    (folder / "bin" / "python").unlink()
    assert environments.state("torch") == "half-made"


def test_a_changed_lock_file_makes_it_outdated_and_a_comment_does_not(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lock = tmp_path / "torch.txt"
    lock.write_text("numpy==1.0\n")
    monkeypatch.setattr(environments, "lock", lambda name: tmp_path / f"{name}.txt")
    finished(home)
    lock.write_text("# from elsewhere\n\nnumpy==1.0\n")
    assert environments.state("torch") == "ready"
    (tmp_path / "torch-index.txt").write_text("torch==1.0\n")
    assert environments.state("torch") == "outdated"
    (tmp_path / "torch-index.txt").unlink()
    lock.write_text("numpy==1.1\n")
    assert environments.state("torch") == "outdated"
    assert environments.interpreter("torch") is not None  # it still runs


def test_an_environment_that_was_moved_is_none(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(home)
    home.rename(home.with_name("elsewhere"))
    monkeypatch.setenv("TRIPORT_VENVS", str(home.with_name("elsewhere")))
    assert environments.state("torch") == "half-made"


def test_what_somebody_else_made_is_left_alone(home: Path) -> None:
    (home / "torch" / "precious").mkdir(parents=True)
    with pytest.raises(UserError, match=r"was not made by triport, so it is left alone\. Remedy: move it away"):
        environments.begin("torch")
    assert (home / "torch" / "precious").exists()


def test_what_was_made_before_is_removed(home: Path) -> None:
    rest = finished(home, "paddle") / "rest"
    rest.touch()
    assert environments.begin("paddle") == rest.parent
    assert environments.state("paddle") == "half-made" and not rest.exists()
    assert [path.name for path in home.iterdir()] == ["paddle"]


def test_a_removal_that_was_interrupted_is_finished(home: Path) -> None:
    folder = finished(home)
    folder.rename(home / ".torch.old")
    (home / ".torch.old" / environments.STAMP).unlink()
    assert finished(home) == folder
    assert environments.state("torch") == "ready"
    assert [path.name for path in home.iterdir()] == ["torch"]


# ---------------------------------------------------------------- making
Calls = list[tuple[str, ...]]


@pytest.fixture
def quick(home: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Set-up without uv and without a framework: gives what uv would be called with."""
    calls: Calls = []

    def uv(*words: str, silent: bool = False) -> None:
        if words[0] == "venv":
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", words[-1]], check=True)
        elif "--dry-run" in words:
            raise UserError("no CPU build is offered")
        else:
            calls.append(words)

    monkeypatch.setattr(setup, "uv", uv)
    monkeypatch.setattr(setup, "compile_kernels", lambda python: "compiled")
    question = """print('{"version": "1.2.3"}')"""
    monkeypatch.setattr(setup.doctor, "QUESTIONS", dict.fromkeys(environments.FRAMEWORKS, question))
    monkeypatch.setattr(setup.pythons, "find", lambda versions: Path(sys.executable))
    monkeypatch.setattr(environments, "obstacle", lambda framework: "")
    return calls


def locks(words: tuple[str, ...]) -> list[str]:
    """The lock files that uv is called with."""
    return [Path(word).stem for word in words if word.endswith(".txt")]


def test_made_once_and_then_left(quick: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert setup.main(["torch"]) == 0
    assert environments.state("torch") == "ready"
    sync, project = quick
    assert sync[:2] == ("pip", "sync") and "--require-hashes" in sync
    assert locks(sync) == ["builders", "torch", "torch-index"]
    assert project[-2:] == ("--editable", str(ROOT)) and "--no-build-isolation" in project
    assert all(str(environments.python("torch")) in words for words in quick)
    assert "works          PyTorch 1.2.3" in capsys.readouterr().out
    quick.clear()
    assert setup.main(["torch", "torch"]) == 0
    assert quick == []


def test_a_cpu_build_of_pytorch_is_taken_where_it_is_offered(quick: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    real = setup.uv

    def uv(*words: str, silent: bool = False) -> None:
        if "--dry-run" not in words:
            real(*words)

    monkeypatch.setattr(setup, "uv", uv)
    assert setup.main(["torch"]) == 0
    assert locks(quick[0]) == ["builders", "torch", "torch-cpu"]


def test_an_interruption_is_made_good(quick: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*words: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(setup, "install", interrupted)
        with pytest.raises(KeyboardInterrupt):
            setup.main(["paddle"])
    assert environments.state("paddle") == "half-made"
    rest = environments.home() / "paddle" / "rest"
    rest.touch()
    assert setup.main(["paddle"]) == 0
    assert environments.state("paddle") == "ready" and not rest.exists()
    assert locks(quick[0]) == ["builders", "paddle"]


def test_a_broken_environment_is_made_again(quick: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    assert setup.main(["torch"]) == 0
    quick.clear()
    answers = iter(["raise ImportError('gone')", setup.doctor.QUESTIONS["torch"]])
    questions = type("Questions", (dict,), {"__getitem__": lambda self, name: next(answers)})()
    monkeypatch.setattr(setup.doctor, "QUESTIONS", questions)
    assert setup.main(["torch"]) == 0
    assert len(quick) == 2


def test_without_a_compiler_oneflow_works_and_libai_comes_later(
    quick: Calls, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = setup.uv

    def uv(*words: str, silent: bool = False) -> None:
        if words[-1].endswith("-source.txt"):
            raise UserError("no compiler")
        real(*words)

    with monkeypatch.context() as patch:
        patch.setattr(setup, "uv", uv)
        assert setup.main(["oneflow"]) == 0
    assert "without LiBai" in capsys.readouterr().out
    quick.clear()
    assert setup.main(["oneflow"]) == 0
    assert [locks(words) for words in quick] == [["oneflow-source"]]
    quick.clear()
    assert setup.main(["oneflow"]) == 0 and quick == []


def test_set_up_environments_are_listed(quick: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert setup.main(["paddle"]) == 0
    capsys.readouterr()
    assert setup.main(["--list", *environments.FRAMEWORKS]) == 0
    here = [name for name in environments.FRAMEWORKS if environments.is_here(name) or name == "paddle"]
    assert capsys.readouterr().out.split() == here


# ---------------------------------------------------------------- uv
def test_pips_settings_reach_uv() -> None:
    listing = (
        ":env:.find-links='/wheels /more'\nglobal.index-url='https://index.example/simple'\n"
        "global.extra-index-url='file:///a\\nfile:///b'\nglobal.timeout='60'\nfreeze.find-links='/other'\n"
    )
    assert installer.translated(listing) == {
        "UV_FIND_LINKS": "/wheels,/more",
        "UV_DEFAULT_INDEX": "https://index.example/simple",
        "UV_INDEX": "file:///a file:///b",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }
    assert installer.translated("") == {}


def test_an_old_or_broken_uv_on_the_path_is_passed_over(nowhere: Path) -> None:
    assert installer.release(str(program(nowhere / "uv", "echo uv 0.8.3 '(abc 2025-01-01)'"))) == (0, 8)
    assert installer.release(str(program(nowhere / "uv", "echo uv 0.8.3; exit 1"))) == ()
    assert installer.release(str(nowhere / "no-uv")) == ()


def test_a_failing_command_is_named(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="sh -c echo no such thing; exit 3 ended with exit code 3"):
        installer.run("sh", "-c", "echo no such thing; exit 3")
    assert capfd.readouterr().err == "no such thing\n"  # the set-up's own output is a table


ALONE = "import sys; from triport import environments\nwith environments.locked('torch'):\n    print('in', flush=True)"


def started(program: str) -> subprocess.Popen[str]:
    """A Python program that can be spoken with."""
    variables, pipe = {**os.environ, "PYTHONPATH": str(ROOT)}, subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", program], env=variables, stdin=pipe, stdout=pipe, text=True)


def test_two_set_ups_take_turns(home: Path) -> None:
    with (
        started(f"{ALONE}; sys.stdin.read(); print('out', flush=True)") as first,
        started("input()\n" + ALONE) as second,
    ):
        assert first.stdin and first.stdout and second.stdin and second.stdout
        assert first.stdout.readline() == "in\n"
        print("go", file=second.stdin, flush=True)
        assert second.stdout.readline() == "torch: another set-up is at work; waiting for it\n"
        first.stdin.close()
        assert first.stdout.read() == "out\n"
        assert second.stdout.read() == "in\n"


def test_the_lock_holds_until_an_orphaned_command_has_ended(home: Path) -> None:
    orphan = "import os, subprocess; subprocess.Popen(['cat'], stdout=subprocess.DEVNULL, close_fds=False)"
    with started(f"{ALONE}\n    {orphan}; os.kill(os.getpid(), 9)") as first:
        assert first.stdin and first.stdout and first.stdout.readline() == "in\n"
        assert first.wait(timeout=600) == -9
        with started(ALONE) as second:
            assert second.stdout
            assert second.stdout.readline() == "torch: another set-up is at work; waiting for it\n"
            first.stdin.close()  # cat ends
            assert second.stdout.read() == "in\n"


def test_setup_needs_nothing_installed() -> None:
    # -I and -S: no site-packages, no variables; what a fresh machine offers.
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from triport.command import main; main(['setup', '--help'])"
    )
    answer = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0 and "torch, paddle, oneflow" in answer.stdout, answer.stderr


# ---------------------------------------------------------------- lock files
LOCKS = sorted((ROOT / "locks").glob("*.txt"))
ENTRY = re.compile(
    r"[a-z0-9-]+==[\w.+]+(?: ; [\w.()'<>=!* ]+)? \\\n(?: {4}--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+(?: +#.*\n)*"
)


def versions(name: str) -> set[str]:
    """What a lock file names, as name==version."""
    return set(re.findall(r"^[a-z0-9-]+==[\w.+]+", environments.lock(name).read_text(), re.MULTILINE))


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_lock_files_name_versions_and_hashes_alone(path: Path) -> None:
    rest = ENTRY.sub("", path.read_text())
    assert not [line for line in rest.splitlines() if not line.startswith("#")], rest
    assert "://" not in path.read_text()


@pytest.mark.parametrize("framework", environments.FRAMEWORKS)
def test_every_environment_holds_what_the_project_needs(framework: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], "pytest", "pytest-xdist", "hypothesis", "scikit-learn", "setuptools", "pip"]
    for extra in ("train", "tiff", "parquet", "logistic", "jpeg"):
        needed += project["optional-dependencies"][extra]
    names = {line.partition("==")[0] for line in versions(framework)}
    assert {re.split(r"[^\w-]", line)[0].lower() for line in needed} <= names


def test_versions_that_were_chosen() -> None:
    assert "paddlepaddle==3.3.1" in versions("paddle")
    assert {"oneflow==0.9.0", "numpy==1.23.5", "protobuf==3.20.3", "flowvision==0.1.0"} <= versions("oneflow")
    assert versions("oneflow-source") == {"libai==0.1.1"}
    assert "torch==2.13.0" in versions("torch-index") and versions("torch-cpu") == {"torch==2.13.0+cpu"}
    assert not [line for line in versions("torch") if line.startswith(("torch", "nvidia", "cuda", "triton"))]
    for name in ("torch", "paddle", "oneflow"):  # LiBai and the project are built inside the environments
        assert {line for line in versions("builders") if line.startswith(("setuptools", "wheel"))} <= versions(name)


def test_the_tools_of_the_lock_file_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    locked = versions("torch")
    for tool in project["project"]["optional-dependencies"]["test"]:
        assert "==" not in tool or tool in locked
    conflicts = project["tool"]["uv"]["conflicts"]
    assert conflicts == [[{"extra": name} for name in environments.FRAMEWORKS]]
    assert project["project"]["scripts"]["triport"] == "triport.command:main"
