"""Leaves pytest's own file out of wheels and source distributions; all else is in pyproject.toml."""

from setuptools import setup
from setuptools.command.build_py import build_py


class Build(build_py):
    """Copies the packages' modules."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """Return (package, module, file) of each."""
        return [found for found in super().find_package_modules(package, package_dir) if found[1] != "conftest"]


setup(cmdclass={"build_py": Build})
