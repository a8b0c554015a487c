"""The documentation's site: every page has its place in the navigation, every module a page."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SITE = DOCS / "_site"


def need(*modules):
    """Skip where a module of the docs extra is not installed."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed (pip install -e '.[docs]')")


def navigation(tmp_path, pages):
    """Return what the hooks make of a navigation that holds nothing but `pages`, as nested lists."""
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); import hooks; from mkdocs.config import load_config\n"
        "config = load_config(sys.argv[2]); config.nav = json.loads(sys.argv[3]) or config.nav\n"
        "print(json.dumps(hooks.on_config(config).nav))"
    )
    words = [sys.executable, "-c", code, str(SITE), str(ROOT / "mkdocs.yml"), json.dumps(pages)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def leaves(nav):
    if isinstance(nav, str):
        return [nav]
    return [leaf for item in (nav.values() if isinstance(nav, dict) else nav) for leaf in leaves(item)]


def test_every_page_is_in_the_navigation_once(tmp_path):
    need("mkdocs", "material", "mkdocstrings")
    nav = navigation(tmp_path, [])
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    own = [leaf for leaf in leaves(nav) if not leaf.startswith("reference/")]
    assert len(own) == len(set(own))
    assert set(own) == pages | {"index.md"}


def test_a_page_that_nobody_listed_comes_last_and_each_module_has_a_page(tmp_path):
    need("mkdocs", "material", "mkdocstrings")
    nav = navigation(tmp_path, ["index.md", "traces.md"])
    assert nav[:2] == ["index.md", "traces.md"]
    assert {"controllers.md", "extending/codec.md"} <= set(nav[2]["More"])
    reference = leaves(nav[3]["API reference"])
    assert {"reference/abr/registry.md", "reference/player/quality/index.md"} <= set(reference)
    assert not any("__" in page for page in reference)
