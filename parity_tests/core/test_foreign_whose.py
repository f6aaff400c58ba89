"""Whose a configuration file is, also where it only changes another one."""

from __future__ import annotations

from pathlib import Path

import pytest

from triport.core.errors import UserError
from triport.core.spec.foreign.whose import project_of

LAZY = "from libai.config import get_config\ntrain = get_config('common/train.py').train\n"
OWN = "from {} import train\ntrain.train_epoch = 3\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with a LazyConfig in projects/MAE/configs."""
    folder = tmp_path / "projects" / "MAE" / "configs"
    folder.mkdir(parents=True)
    (folder / "base.py").write_text(LAZY)
    (folder / "own").mkdir()
    return folder


@pytest.mark.parametrize(
    ("place", "begins"), [("a.py", ".base"), ("own/a.py", "..base"), ("a.py", "projects.MAE.configs.base")]
)
def test_a_file_that_only_changes_a_lazyconfig_is_one(checkout: Path, place: str, begins: str) -> None:
    (checkout / place).write_text(OWN.format(begins))
    assert project_of(checkout / place) == "LiBai"
    (checkout / "b.py").write_text(OWN.format(".a" if place == "a.py" else ".own.a"))
    assert project_of(checkout / "b.py") == "LiBai"


def test_other_files_are_mmpretrains_or_passls(checkout: Path) -> None:
    for name, text in (
        ("older.py", "_base_ = ['base.py']\n"),
        ("newer.py", "with read_base():\n    from .base import *\n"),
        ("round.py", "from .round import train\n"),
        ("elsewhere.py", "from .absent import train\n"),
        ("plain.py", "model = dict(type='MAE')\n"),
    ):
        (checkout / name).write_text(text)
        assert project_of(checkout / name) == "mmpretrain", name
    assert project_of(Path("a.yaml")) == "PASSL"
    with pytest.raises(UserError, match=r"cannot read .*absent\.py"):
        project_of(checkout / "absent.py")
