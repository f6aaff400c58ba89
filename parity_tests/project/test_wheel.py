"""The wheel: one name at the top, what a user needs and not the tests, and it works beside a package of like names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("core", "weights", "backends", "configs", "locks", "parity_tests", "triport")
TESTS = ("core", "weights", "backends", "triport", "parity", "project", "fixtures")  # in parity_tests
BUILD = "import sys; from setuptools import build_meta as b; b.build_{kind}(sys.argv[1])"
RIVAL = {
    "core/__init__.py": "whose = 'rival'\n",
    "core/spec.py": "whose = 'rival'\n",
    "weights/__init__.py": "whose = 'rival'\n",
    "rival-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: rival\nVersion: 1.0\n",
    "rival-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
}


def build(kind: str, source: Path, out: Path) -> Path:
    """Build a "wheel" or an "sdist" with the setuptools of this interpreter; nothing is downloaded."""
    out.mkdir()
    subprocess.run(
        [sys.executable, "-c", BUILD.format(kind=kind), str(out)], cwd=source, check=True, stdout=subprocess.DEVNULL
    )
    (made,) = out.glob("triport-*")
    return made


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel of the checkout, and that of its source distribution."""
    folder = tmp_path_factory.mktemp("a wheel")
    checkout = folder / "checkout"
    for name in PARTS:
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*")
        shutil.copytree(ROOT / name, checkout / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    direct = build("wheel", checkout, folder / "direct")
    with tarfile.open(build("sdist", checkout, folder / "sdist")) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return {"checkout": direct, "sdist": build("wheel", unpacked, folder / "indirect")}


def contents(wheel: Path) -> set[str]:
    """The files in a wheel, apart from its metadata."""
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def test_the_wheel_has_one_name_at_the_top(wheels: dict[str, Path]) -> None:
    assert {name.partition("/")[0] for name in contents(wheels["checkout"])} == {"triport"}


def test_a_source_distribution_builds_the_same_wheel(wheels: dict[str, Path]) -> None:
    assert contents(wheels["sdist"]) == contents(wheels["checkout"])


def test_the_wheel_holds_what_a_user_needs_and_no_tests(wheels: dict[str, Path]) -> None:
    wanted = {"triport/parity_tests/README.md", "triport/parity_tests/__init__.py", "triport/py.typed"}
    for part in PARTS:
        inside = "triport" if part == "triport" else f"triport/{part}"
        for path in (ROOT / part).rglob("*"):
            parts = path.relative_to(ROOT / part).parts
            test = part == "parity_tests" and (len(parts) == 1 or parts[0] in TESTS)
            if path.is_file() and not test and "__pycache__" not in parts and path.suffix not in (".in", ".md"):
                wanted.add(f"{inside}/{'/'.join(parts)}")
    found = contents(wheels["checkout"])
    assert wanted <= found, sorted(wanted - found)
    assert {name for name in found - wanted if not name.endswith(".md")} == set()
    assert any(name.endswith(".gz") for name in found)  # the demo's images
    assert {f"triport/parity_tests/goldens/{path.name}" for path in (ROOT / "parity_tests/goldens").iterdir()} <= found
    assert not [
        name
        for name in found
        if ("/test_" in name and name.endswith(".py")) or name.endswith("conftest.py") or "/fixtures/" in name
    ]


class Installed:
    """An environment with nothing but the wheel and its rival; what triport requires is lent by this interpreter."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.folder = folder
        venv.create(folder / "environment", symlinks=True)
        self.python = folder / "environment" / "bin" / "python"
        (self.packages,) = (folder / "environment").glob("lib/python3*/site-packages")
        (self.packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
        rival = folder / "rival-1.0-py3-none-any.whl"
        with zipfile.ZipFile(rival, "w") as archive:
            for name, text in RIVAL.items():
                archive.writestr(name, text)
            record = "".join(f"{name},,\n" for name in [*RIVAL, "rival-1.0.dist-info/RECORD"])
            archive.writestr("rival-1.0.dist-info/RECORD", record)
        for package in (wheel, rival):
            self.pip("install", "--no-index", "--no-deps", str(package))

    def pip(self, *words: str) -> None:
        command = [sys.executable, "-m", "pip", "--python", str(self.python), "--disable-pip-version-check"]
        subprocess.run([*command, *words], check=True, capture_output=True)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment outside the checkout."""
        variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TRIPORT_VENVS")}
        return subprocess.run(words, cwd=self.folder, env=variables, capture_output=True, text=True)

    def triport(self, *words: str) -> str:
        """Run `triport …`, which must succeed, and return what it prints."""
        answer = self.run(str(self.python), "-m", "triport", *words)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout


@pytest.fixture(scope="module")
def installed(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel, installed."""
    return Installed(tmp_path_factory.mktemp("installed"), wheels["checkout"])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder of a tiny model with drawn weights, as a run leaves it."""
    from triport.core.model import init
    from triport.core.record import export
    from triport.core.spec import recipe

    chosen = recipe.load("tiny/test_moco_vit")
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    export.write_encoder(path, chosen, init.initial_values(chosen.model, 3))
    return path


def test_the_package_is_the_installed_one(installed: Installed) -> None:
    program = "import triport, core; print(triport.__file__); print(core.whose)"
    where, whose = installed.run(str(installed.python), "-c", program).stdout.splitlines()
    assert Path(where).parent == installed.packages / "triport" and whose == "rival"


def test_commands_of_the_installed_package(installed: Installed, encoder: Path) -> None:
    assert installed.triport("--help").startswith("triport: MoCo v3 and MAE")
    script = installed.run(str(installed.python.with_name("triport")), "--version")
    assert script.returncode == 0 and script.stdout.strip()
    assert "moco_v3/vit_small_300ep" in installed.triport("recipes")
    assert "moco" in installed.triport("inspect", str(encoder))
    target = installed.folder / "encoder.pth"
    installed.triport("convert", str(encoder), str(target), "--to", "timm")
    assert "timm" in installed.triport("inspect", str(target))


def test_the_parity_tool_finds_its_bounds_and_goldens(installed: Installed) -> None:
    program = (
        "from triport.parity_tests.tool import bounds, cases; import triport.parity_tests.reference.layers;"
        "print(len(bounds.LIMITS), *sorted(path.name for path in cases.GOLDENS.glob('*.safetensors')))"
    )
    answer = installed.run(str(installed.python), "-c", program)
    assert answer.returncode == 0, answer.stderr
    count, *names = answer.stdout.split()
    assert int(count) > 20
    assert names == sorted(path.name for path in (ROOT / "parity_tests" / "goldens").glob("*.safetensors"))


def test_set_up_from_the_package_refuses_and_says_what_to_install(installed: Installed) -> None:
    before = sorted(installed.packages.iterdir())
    answer = installed.run(str(installed.python), "-m", "triport", "setup", "paddle")
    assert answer.returncode == 2
    assert f"{installed.python} -m pip install 'triport[paddle]'" in answer.stderr, answer.stderr
    assert answer.stderr.count("\n") == 1 and sorted(installed.packages.iterdir()) == before


def test_uninstalling_the_rival_leaves_triport_whole(installed: Installed, encoder: Path) -> None:
    installed.pip("uninstall", "--yes", "rival")
    assert not (installed.packages / "core").exists()
    assert "moco" in installed.triport("inspect", str(encoder))
