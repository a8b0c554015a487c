"""What MkDocs cannot do by itself for this repository; loaded by mkdocs.yml.

- README.md is the home page; links from pages to other files of the repository lead to copies of them in the site, so
  that one link works here and where the repository is read.
- Pages that nobody has put in the navigation come last in it, under "More".
- The API reference has a page for each module, made from its docstrings.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("packager", "player", "abr", "emulator", "traces", "experiments")
HOME = "README.md"
_LINK = re.compile(r"(\]\()([^)\s#]+)([^)]*\))")
_SEARCHED_LATER = "---\nsearch:\n  boost: 0.0005\n---\n\n"
"""Pages that explain a word come before functions that have it in their names, which the search ranks 1000 times up."""
_REPOSITORY = PurePosixPath("repository")
"""Folder of the site with copies of files from outside docs/."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Complete the navigation: pages that it lacks, and the API reference."""
    assert config.nav is not None
    docs = Path(config.docs_dir)
    pages = sorted(path.relative_to(docs).as_posix() for path in docs.rglob("*.md"))
    missing = [page for page in pages if page not in set(_leaves(config.nav))]
    if missing:
        config.nav.append({"More": missing})
    config.nav.append({"API reference": [{package: _reference(package)} for package in PACKAGES]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the home page, the pages of modules, and copies of the files outside docs/ that pages link to."""
    files.append(File.generated(config, "index.md", content=(ROOT / HOME).read_text(encoding="utf-8")))
    for package in PACKAGES:
        for page in _reference(package):
            module = PurePosixPath(page).with_suffix("").relative_to("reference").as_posix().replace("/", ".")
            module = module.removesuffix(".index")
            content = f"{_SEARCHED_LATER}# {module}\n\n::: {module}\n"
            files.append(File.generated(config, page, content=content))
    pages = [*Path(config.docs_dir).rglob("*.md"), ROOT / HOME]
    for page in pages:
        for _, target, _ in _LINK.findall(page.read_text(encoding="utf-8")):
            place = _outside(page, target, config)
            if place is not None and files.get_file_from_path(_copy_of(place)) is None:
                files.append(File.generated(config, _copy_of(place), abs_src_path=str(ROOT / place)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links of the home page and links to the outside of docs/ to where their targets are in the site."""
    source = ROOT / HOME if page.file.src_uri == "index.md" else Path(config.docs_dir) / page.file.src_uri
    if page.file.src_uri.startswith("reference/"):
        return markdown
    if _REPOSITORY in PurePosixPath(page.file.src_uri).parents:
        source = ROOT / PurePosixPath(page.file.src_uri).relative_to(_REPOSITORY)

    def moved(match: re.Match[str]) -> str:
        target = _in_site(source, match[2], config)
        if target is None:
            return match[0]
        return f"{match[1]}{get_relative_url(target, page.file.src_uri)}{match[3]}"

    return _LINK.sub(moved, markdown)


def _leaves(nav: list | dict | str) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    items = nav.values() if isinstance(nav, dict) else nav
    return [leaf for item in items for leaf in _leaves(item)]


def _reference(package: str) -> list[str]:
    """Return the pages of a package's modules, the package's own first."""
    paths = sorted((ROOT / package).rglob("*.py"))
    modules = [path.relative_to(ROOT).with_suffix("") for path in paths if path.name != "__main__.py"]
    return [f"reference/{_page(module)}" for module in modules]


def _page(module: Path) -> str:
    return (module.parent / "index.md" if module.name == "__init__" else module.with_suffix(".md")).as_posix()


def _outside(page: Path, target: str, config: MkDocsConfig) -> PurePosixPath | None:
    """Return the place in the repository of a link's target, if it is a file outside docs/ and not the home page."""
    if "://" in target or target.startswith("mailto:"):
        return None
    place = (page.parent / target).resolve()
    if not place.is_file() or ROOT not in place.parents or Path(config.docs_dir) in place.parents:
        return None
    return None if place == ROOT / HOME else PurePosixPath(place.relative_to(ROOT).as_posix())


def _copy_of(place: PurePosixPath) -> str:
    """Return where a file from outside docs/ is in the site; code is shown as text."""
    return (_REPOSITORY / (place if place.suffix in (".md", ".png", ".jpg") else f"{place}.txt")).as_posix()


def _in_site(page: Path, target: str, config: MkDocsConfig) -> str | None:
    """Return the site's path for a link whose target moves, else None."""
    place = _outside(page, target, config)
    if place is not None:
        return _copy_of(place)
    if "://" in target:
        return None
    found = (page.parent / target).resolve()
    if found == ROOT / HOME:
        return "index.md"
    docs = Path(config.docs_dir)
    if docs in found.parents and docs not in page.parents:
        return found.relative_to(docs).as_posix()
    return None
