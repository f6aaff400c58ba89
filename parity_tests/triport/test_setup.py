"""Environments: interpreters, whole and half-made states, two set-ups at once, lock files. Downloads nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from triport import environments, pythons, setup
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


def test_an_interpreter_of_another_version_or_without_venv_does_not_count(nowhere: Path) -> None:
    program(nowhere / "bin" / "python3.8", "echo 3.9")
    program(nowhere / ".asdf/installs/python/3.8.1/bin/python3.8", "echo No module named ensurepip >&2; exit 1")
    assert pythons.find(("3.8",)) is None


def test_versions_in_their_order(nowhere: Path) -> None:
    program(nowhere / "bin" / "python3.8", "echo 3.8")
    second = program(nowhere / "bin" / "python3.7", "echo 3.7")
    assert pythons.find(("3.7", "3.8")) == second


def test_uv_is_asked_last(nowhere: Path) -> None:
    got = program(nowhere / "uv-made" / "python3.8", "echo 3.8")
    program(nowhere / "bin" / "uv", f'test "$2" = install && touch {nowhere}/got; test -e {nowhere}/got && echo {got}')
    os.environ["PATH"] += f":{os.defpath}"
    assert pythons.find(("3.8",)) == got


def test_this_interpreter_is_found_beneath_an_environment(nowhere: Path) -> None:
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    found = pythons.find((version,))
    assert found is not None and pythons.works(found, version)
    if sys.prefix != sys.base_prefix:
        assert not found.is_relative_to(sys.prefix)


def test_no_interpreter_says_how_to_get_one_and_the_others_go_on(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup.platform, "system", lambda: "Linux")
    monkeypatch.setattr(setup.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(setup.pythons, "find", lambda versions: None)
    done = []
    real = setup.make

    def make(name: str) -> tuple[str, str]:
        done.append(name)
        return real(name) if name == "oneflow" else ("works", "")

    monkeypatch.setattr(setup, "make", make)
    assert setup.main(["oneflow", "torch"]) == 1
    assert done == ["oneflow", "torch"]
    told = capsys.readouterr()
    assert "uv python install 3.10" in told.err and "pyenv install 3.10" in told.err
    assert re.search(r"oneflow +does not work +no working Python 3\.10 was found\n", told.out)
    assert not (home / "oneflow").exists()


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


finished_text = "numpy==1.0\n"


def test_a_changed_lock_file_makes_it_outdated_and_a_comment_does_not(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text(finished_text)
    monkeypatch.setattr(environments, "lock", lambda name: (lock, tmp_path / "none.txt"))
    finished(home)
    lock.write_text(f"# said otherwise\n\n{finished_text}")
    assert environments.state("torch") == "ready"
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
        environments.remove("torch")
    assert (home / "torch" / "precious").exists()
    finished(home, "paddle")
    environments.remove("paddle")
    assert environments.state("paddle") == "absent"


# ---------------------------------------------------------------- making
@pytest.fixture
def quick(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Set-up without pip and without a framework: gives what pip would be called with."""
    calls: list[list[str]] = []
    real = setup.run

    def run(framework: str, command: list[str], output: object, count: int = 0) -> None:
        if "venv" in command:
            real(framework, [*command[:3], "--without-pip", *command[3:]], output, count)  # type: ignore[arg-type]
        else:
            calls.append(command[command.index("install") + 2 :])

    monkeypatch.setattr(setup, "run", run)
    monkeypatch.setattr(setup, "CHECKS", dict.fromkeys(environments.FRAMEWORKS, "print('1.2.3')"))
    monkeypatch.setattr(setup.pythons, "find", lambda versions: Path(sys.executable))
    return calls


def test_made_once_and_then_left(quick: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert setup.main(["torch"]) == 0
    assert environments.state("torch") == "ready"
    assert [words[-1] for words in quick] == ["wheel==0.48.0", str(ROOT / "locks" / "torch.txt"), str(ROOT)]
    assert "--no-deps" not in quick[1]  # torch's CUDA packages come with its wheel
    assert "works          PyTorch 1.2.3" in capsys.readouterr().out
    quick.clear()
    assert setup.main(["torch", "torch"]) == 0
    assert quick == []


def test_an_interruption_is_made_good(quick: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert "--no-deps" in quick[1]  # its lock file is complete


def test_a_broken_environment_is_made_anew(quick: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert setup.main(["torch"]) == 0
    quick.clear()
    answers = iter(["raise ImportError('gone')", "print('1.2.3')"])
    monkeypatch.setattr(setup, "CHECKS", type("Checks", (dict,), {"__getitem__": lambda self, name: next(answers)})())
    assert setup.main(["torch"]) == 0
    assert len(quick) == 3


def test_without_a_compiler_oneflow_works_and_libai_comes_later(
    quick: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup.platform, "system", lambda: "Linux")
    monkeypatch.setattr(setup.platform, "machine", lambda: "x86_64")
    real = setup.pip

    def pip(framework: str, words: list[str], output: object, count: int = 0) -> None:
        if words[-1].endswith("-source.txt"):
            raise UserError("no compiler")
        real(framework, words, output, count)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(setup, "pip", pip)
        assert setup.main(["oneflow"]) == 0
    assert "without LiBai" in capsys.readouterr().out
    quick.clear()
    assert setup.main(["oneflow"]) == 0
    assert [words[-1] for words in quick] == [str(ROOT / "locks" / "oneflow-source.txt")]
    quick.clear()
    assert setup.main(["oneflow"]) == 0 and quick == []


def test_oneflow_says_where_it_has_wheels(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup.platform, "machine", lambda: "arm64")
    with pytest.raises(UserError, match="Linux on x86-64 only"):
        setup.make("oneflow")


def test_a_failing_command_leaves_its_last_words_and_its_log(home: Path, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log, pytest.raises(UserError, match="ERROR: no such thing") as told:
        setup.run("torch", ["sh", "-c", "echo ERROR: no such thing; echo later; exit 3"], log)
    assert "log" in str(told.value)
    assert "later" in (tmp_path / "log").read_text()


def test_two_set_ups_take_turns(home: Path, tmp_path: Path) -> None:
    program = (
        "import sys, time; from triport import environments\n"
        "with environments.only_one('torch'):\n"
        "    print('in', flush=True); time.sleep(1.5); print('out', flush=True)"
    )
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    start = [sys.executable, "-c", program]
    first = subprocess.Popen(start, env=variables, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None and first.stdout.readline() == "in\n"
    second = subprocess.run(start, env=variables, stdout=subprocess.PIPE, text=True, timeout=60)
    assert first.communicate(timeout=60)[0] == "out\n"
    assert second.stdout.splitlines() == ["torch: another set-up is at work; waiting for it", "in", "out"]


def test_the_lock_holds_until_an_orphaned_pip_has_ended(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = (
        "import os, subprocess; from triport import environments\n"
        "with environments.only_one('torch'):\n"
        "    subprocess.Popen(['sleep', '4'], close_fds=False); os.kill(os.getpid(), 9)"
    )
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", program], env=variables, timeout=60).returncode == -9
    with environments.only_one("torch"):
        assert "waiting for it" in capsys.readouterr().out


def test_setup_needs_nothing_installed() -> None:
    # -I and -S: no site-packages, no variables; what a fresh machine offers.
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from triport.command import main; main(['setup', '--help'])"
    )
    answer = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0 and "torch, paddle, oneflow" in answer.stdout, answer.stderr


# ---------------------------------------------------------------- lock files
@pytest.mark.parametrize("framework", environments.FRAMEWORKS)
def test_lock_files_are_exact(framework: str) -> None:
    for path in environments.lock(framework):
        for line in environments.requirements(path):
            assert re.fullmatch(r'[a-z0-9-]+==[\w.]+( ; python_version (<|>=) "3\.11")?', line), line
    names = [line.partition("==")[0] for line in environments.requirements(environments.lock(framework)[0])]
    assert {"numpy", "pillow", "safetensors", "ml-dtypes", "tomli", "rich", "pytest", "hypothesis"} <= set(names)
    assert set(setup.BUILDERS) <= set(names)


def test_versions_that_were_chosen() -> None:
    torch, paddle, oneflow = (environments.requirements(environments.lock(name)[0]) for name in environments.FRAMEWORKS)
    assert "torch==2.13.0" in torch and "paddlepaddle==3.3.1" in paddle
    assert {"oneflow==0.9.0", "numpy==1.23.5", "protobuf==3.20.3", "flowvision==0.1.0"} <= set(oneflow)
    assert environments.requirements(environments.lock("oneflow")[1]) == ["libai==0.1.1"]
    assert not [line for line in torch if line.startswith(("nvidia", "cuda", "triton"))]


def test_the_tools_of_the_lock_file_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    locked = environments.requirements(environments.lock("torch")[0])
    for tool in project["project"]["optional-dependencies"]["test"]:
        assert "==" not in tool or tool in locked
    conflicts = project["tool"]["uv"]["conflicts"]
    assert conflicts == [[{"extra": name} for name in environments.FRAMEWORKS]]
    assert project["project"]["scripts"]["triport"] == "triport.command:main"
