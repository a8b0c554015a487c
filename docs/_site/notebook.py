"""`python docs/_site/notebook.py [FOLDER]`: run docs/tutorial.md and write it as a notebook with what its blocks print.

The page is the one source: Jupytext reads its bash and python blocks as cells, nbclient runs them in an empty folder.
FOLDER (docs/) gets tutorial.ipynb, and the figure that the page shows as images/tutorial.png.
"""

from __future__ import annotations

import base64
import os
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

PAGE = Path(__file__).resolve().parents[1] / "tutorial.md"
ROOT = PAGE.parents[1]
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
_HEADER = "---\njupyter:\n  kernelspec: {name: python3, display_name: Python 3, language: python}\n---\n\n"
"""Says which blocks are the notebook's own language; the others become %%bash cells."""
_PRINTED = re.compile(r"```text\n.*?```\n+|!\[[^]]*\]\(images/tutorial\.png\)\n+", re.DOTALL)
"""What the page shows of the outputs; the notebook has all of them."""
TIMEOUT_S = 1800
"""Of one cell; only a cell that hangs takes as long."""


def read_page(text: str) -> nbformat.NotebookNode:
    """Return a page as a notebook that has not been run."""
    notebook = jupytext.reads(_HEADER + _PRINTED.sub("", text), fmt="md")
    notebook.metadata = {"kernelspec": KERNEL}
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # not a random one
        cell.metadata = {}
    return notebook


def run(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Run all cells in a folder, with this interpreter and this checkout.

    Raises:
        CellExecutionError: a cell fails; the log files it left are on stderr then.
    """
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    client = NotebookClient(
        notebook, timeout=TIMEOUT_S, coalesce_streams=True, resources={"metadata": {"path": str(folder)}}
    )
    try:
        client.execute()
    except CellExecutionError:
        for log in sorted(folder.glob("*.log")):
            print(f"{log.name}:\n{log.read_text(encoding='utf-8')}", file=sys.stderr)
        raise
    for cell in notebook.cells:
        cell.metadata = {}  # times of day


def pictures(notebook: nbformat.NotebookNode) -> list[bytes]:
    """Return the pictures among the outputs, as PNG files."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [base64.b64decode(output.data["image/png"]) for output in outputs if "image/png" in output.get("data", {})]


def main() -> int:
    """Run the page; write the notebook and its figure."""
    notebook = read_page(PAGE.read_text(encoding="utf-8"))
    with TemporaryDirectory(prefix="promptdash-tutorial-") as folder:
        run(notebook, Path(folder))
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE.parent
    (output / "images").mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, output / "tutorial.ipynb")
    (output / "images" / "tutorial.png").write_bytes(pictures(notebook)[-1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
