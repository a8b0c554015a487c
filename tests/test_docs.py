"""The documents: links lead somewhere, commands name modules that exist."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_exist(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_modules_of_this_project(page):
    own = {"packager", "player", "abr", "emulator", "traces", "experiments"}
    modules = set(re.findall(r"python -m ([a-z_][a-z_.]*[a-z_])", page.read_text()))
    unknown = [m for m in modules if m.split(".")[0] in own and importlib.util.find_spec(m) is None]
    assert unknown == []


def test_the_readme_leads_to_every_page():
    text = (ROOT / "README.md").read_text()
    top = [page.name for page in PAGES[1:] if page.parent.name == "docs"]
    assert [name for name in top if f"docs/{name}" not in text] == []
    assert "docs/extending/index.md" in text


def test_the_overview_of_extensions_leads_to_each_of_them():
    folder = ROOT / "docs" / "extending"
    text = (folder / "index.md").read_text()
    own = [page.name for page in folder.glob("*.md") if page.name != "index.md"]
    assert [name for name in own if f"]({name})" not in text] == []
