"""Build notebooks/*.ipynb from notebooks/src/*.py, or say with --check which are out of date.

The sources are plain Python in jupytext's percent format, so that they can be read, linted and
reviewed; the notebooks are products, without outputs, the same on every machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import jupytext
import nbformat

HERE = Path(__file__).resolve().parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def build(source: Path) -> str:
    """Return the text of the notebook that belongs to a source."""
    notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells):
        # jupytext draws ids at random, and a product must not change when its source did not.
        cell["id"] = f"cell-{number:02d}"
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Build all, or check all; the exit code is 1 when a checked notebook is out of date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    check = parser.parse_args(argv).check
    stale = []
    for source in sorted((HERE / "src").glob("*.py")):
        product, text = HERE / f"{source.stem}.ipynb", build(source)
        if product.is_file() and product.read_text(encoding="utf-8") == text:
            continue
        stale.append(product.name)
        if not check:
            product.write_text(text, encoding="utf-8")
    if check and stale:
        sys.stderr.write(f"out of date: {', '.join(stale)}; run `make notebooks`\n")
        return 1
    sys.stdout.write(f"{'wrote ' + ', '.join(stale) if stale else 'all up to date'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
