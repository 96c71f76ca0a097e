"""Make both notebooks of their one source, warm_start.py: solved.ipynb, and gaps.ipynb, to be filled in.

    python examples/warm_start/notebooks.py               # write them anew
    python examples/warm_start/notebooks.py --run quick   # run the code of solved.ipynb in order, without Jupyter

In the source "# %%" begins a cell of code and "# %% [markdown]" one of text; a text of "# %% [markdown] answer" is left
out of gaps.ipynb, and of a line "name = value  # TODO: what" its value is.
"""

import argparse
import json
import os
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
_GAP = re.compile(r"^(\s*[\w, ]+) = .*?  # TODO: (.*)$", re.MULTILINE)
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def notebook(source: str, solved: bool) -> dict[str, Any]:
    """Return a notebook, ready for JSON, of format 4.5."""
    cells = []
    for number, (kind, text) in enumerate(re.findall(r"^# %%(.*)\n((?:(?!# %%).*\n?)*)", source, re.MULTILINE)):
        text = text.strip("\n")
        cell = {"cell_type": "markdown" if "markdown" in kind else "code", "id": f"cell-{number}", "metadata": {}}
        if cell["cell_type"] == "markdown":
            text = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
            text = text if solved or "answer" not in kind else "*Your answer:*"
        else:
            cell |= {"execution_count": None, "outputs": []}
            text = _GAP.sub(lambda gap: gap[0].replace("TODO: ", "") if solved else _emptied(*gap.groups()), text)
        cells.append(cell | {"source": text.splitlines(keepends=True)})
    return {"cells": cells, "metadata": {"kernelspec": _KERNEL}, "nbformat": 4, "nbformat_minor": 5}


def _emptied(names: str, what: str) -> str:
    return f"{names} = {', '.join(['...'] * len(names.split(',')))}  # TODO: {what}"


def made() -> dict[str, str]:
    """Return the text of each notebook by the name of its file."""
    source = (HERE / "warm_start.py").read_text(encoding="utf-8")
    both = {"solved.ipynb": True, "gaps.ipynb": False}
    return {
        name: json.dumps(notebook(source, solved), indent=1, ensure_ascii=False) + "\n" for name, solved in both.items()
    }


def code(name: str) -> list[str]:
    """Return the cells of code of a notebook that is kept here."""
    cells = json.loads((HERE / name).read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run(scale: str) -> dict[str, Any]:
    """Run the code of solved.ipynb in order, and return its names."""
    os.environ["SCALE"], names = scale, {"__name__": "__main__"}
    for number, text in enumerate(code("solved.ipynb"), 1):
        exec(compile(text, f"solved.ipynb, cell of code {number}", "exec"), names)
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", choices=("whole", "quick", "small"), metavar="whole|quick|small")
    given = parser.parse_args()
    if given.run:
        run(given.run)
    else:
        for name, text in made().items():
            (HERE / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
