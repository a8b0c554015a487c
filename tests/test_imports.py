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
    "experiments.launchers",
    "experiments.sweep_sessions",
    "packager.server",
    "player.bitstream",
    "player.client",
    "player.config",
    "player.errors",
    "player.events",
    "player.log",
    "player.manifest",
    "player.presentation",
    "player.programme",
    "player.remote",
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


LOSSES = [
    "packager/fit*.py",
    "packager/loss*.py",
    "packager/feature*.py",
    "packager/encoder*.py",
    "experiments/train*.py",
]
"""What computes a training or fitting loss of the codec."""
NO_CODECS = {"experiments/train_lpips.py", "experiments/train_abr.py"}
"""They train a metric, which no loss may use, and controllers, which see scores and never a picture."""
PERCEPTUAL_NETWORKS = {"lpips", "piq", "pyiqa", "torchmetrics", "ssimulacra2"}


def imported_modules(path: Path) -> set[str]:
    """Return every module that `path` may import, with `from a import b` read as `a` and `a.b`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def reached(path: Path) -> set[str]:
    """Return the modules that `path` imports, directly or through modules of ours, at any depth of the code."""
    found: set[str] = set()
    waiting = [path]
    while waiting:
        for name in imported_modules(waiting.pop()) - found:
            found.add(name)
            module = ROOT / name.replace(".", "/")
            waiting += [file for file in (module.with_suffix(".py"), module / "__init__.py") if file.exists()]
    return found


def loss_modules() -> list[str]:
    paths = {str(path.relative_to(ROOT)) for pattern in LOSSES for path in ROOT.glob(pattern)}
    return sorted(paths - NO_CODECS)


@pytest.mark.parametrize("path", loss_modules())
def test_no_loss_can_see_a_metric(path):
    """The rule of docs/metrics.md: no network in a training or fitting loss is reported, and the other way round."""
    modules = reached(ROOT / path)
    metrics = {name for name in modules if name.startswith("player.quality")}
    assert not metrics, f"{path} reaches {', '.join(sorted(metrics))}"
    assert not {name.split(".")[0] for name in modules} & PERCEPTUAL_NETWORKS
    assert "player.quality" not in (ROOT / path).read_text(encoding="utf-8")


def test_the_search_for_metrics_finds_them():
    assert {"packager/fit.py", "packager/losses.py", "experiments/trainer.py"} <= set(loss_modules())
    assert "player.quality.lpips" in reached(ROOT / "packager/package.py")
