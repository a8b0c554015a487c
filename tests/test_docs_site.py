"""The documentation's site: every page has its place, every module a page; the notebook is the tutorial, run."""

import base64
import importlib.util
import json
import re
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


def run_notebook(code, *words, ok=True):
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(SITE)!r}); import notebook\n{code}", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) is ok, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def executed():
    """The cells of the notebook that stands beside the page."""
    return json.loads((DOCS / "tutorial.ipynb").read_text(encoding="utf-8"))["cells"]


@pytest.fixture(scope="module")
def printed(executed):
    """All text that the notebook's cells printed."""
    outputs = [output for cell in executed for output in cell.get("outputs", [])]
    return "".join("".join(output.get("text", "")) for output in outputs)


def test_the_notebook_is_the_tutorial_run(executed):
    need("jupytext", "nbclient")
    code = "import nbformat; print(nbformat.writes(notebook.read_page(notebook.PAGE.read_text(encoding='utf-8'))))"
    page = json.loads(run_notebook(code).stdout)["cells"]
    assert ["".join(cell["source"]) for cell in executed] == ["".join(cell["source"]) for cell in page], (
        "docs/tutorial.md has changed: python docs/_site/notebook.py makes the notebook anew"
    )
    ran = [cell["execution_count"] for cell in executed if cell["cell_type"] == "code"]
    assert ran == list(range(1, len(ran) + 1))
    assert not any(output["output_type"] == "error" for cell in executed for output in cell.get("outputs", []))
    assert (DOCS / "tutorial.ipynb").stat().st_size < 1_000_000


def test_every_block_of_code_is_a_cell(executed):
    text = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:bash|python)\n(.*?)\n```", text, re.DOTALL)
    cells = ["".join(cell["source"]) for cell in executed if cell["cell_type"] == "code"]
    assert blocks == [cell.removeprefix("%%bash\n") for cell in cells]


def test_what_the_tutorial_shows_is_what_was_printed(executed, printed):
    """Lines of its output blocks, numbers in its prose, and its figure."""
    text = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    shown = [line for block in re.findall(r"```text\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert len(shown) > 20
    lines = {line.rstrip() for line in printed.splitlines()}
    assert [line for line in shown if line != "..." and line not in lines] == []
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert [number for number in re.findall(r"\d+\.\d+", prose) if number not in printed] == []
    pictures = [output["data"]["image/png"] for cell in executed for output in cell.get("outputs", [])
                if "image/png" in output.get("data", {})]  # fmt: skip
    assert base64.b64decode(pictures[-1]) == (DOCS / "images" / "tutorial.png").read_bytes()


PAGE = """
# A page

```bash
echo of the shell | tee note.log
{command}
```

```text
left out
```

```python
print(6 * 7)
```
"""
RUN = (
    "import pathlib; page = notebook.read_page(sys.argv[1]); notebook.run(page, pathlib.Path(sys.argv[2]))\n"
    "print([(cell.cell_type, [output.text for output in cell.get('outputs', [])]) for cell in page.cells])"
)


def test_a_page_runs_block_by_block_in_its_folder(tmp_path):
    need("jupytext", "nbclient", "ipykernel")
    cells = run_notebook(RUN, PAGE.format(command="ls"), str(tmp_path)).stdout
    assert cells == "[('markdown', []), ('code', ['of the shell\\nnote.log\\n']), ('code', ['42\\n'])]\n"


def test_a_block_that_fails_ends_it_with_the_logs(tmp_path):
    need("jupytext", "nbclient", "ipykernel")
    error = run_notebook(RUN, PAGE.format(command="exit 3"), str(tmp_path), ok=False).stderr
    assert "note.log:\nof the shell\n" in error
    assert "exit status 3" in error
