"""Imports point one way, and the light half of the project works without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

MAY_IMPORT = {
    "traces": set(),
    "abr": set(),
    "emulator": {"traces"},
    "player": {"abr"},
    "packager": {"player", "abr"},
    "experiments": {"packager", "player", "abr", "emulator", "traces"},
}

LIGHT_MODULES = [
    "traces",
    "abr",
    "abr.__main__",
    "emulator",
    "player",
    "player.bitstream",
    "player.config",
    "player.errors",
    "player.events",
    "player.log",
    "player.manifest",
    "player.presentation",
    "player.session",
]

HEAVY = ("torch", "diffusers", "transformers", "torchmetrics", "pandas", "matplotlib", "hydra", "av", "skimage")


def imported_packages(path: Path) -> set[str]:
    """Return which of our packages the module at `path` imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
        found |= {name.split(".")[0] for name in names}
    return found & set(MAY_IMPORT)


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_a_package_imports_only_what_lies_below_it(package):
    allowed = MAY_IMPORT[package] | {package}
    for path in sorted((ROOT / package).rglob("*.py")):
        wrong = imported_packages(path) - allowed
        assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_no_module_imports_relatively(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        assert not any(isinstance(node, ast.ImportFrom) and node.level for node in nodes), path.relative_to(ROOT)


def test_the_light_half_imports_without_heavy_packages():
    present = [name for name in LIGHT_MODULES if (ROOT / name.replace(".", "/")).with_suffix(".py").exists()]
    present += [name for name in LIGHT_MODULES if (ROOT / name.replace(".", "/") / "__init__.py").exists()]
    code = (
        "import importlib, sys\n"
        f"for name in {present!r}: importlib.import_module(name)\n"
        f"print(*sorted(set(sys.modules) & set({HEAVY!r})))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
