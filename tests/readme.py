"""The README's Python programs; run with a folder, it writes them there, where `make lint` checks their types."""

import re
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def programs() -> list[str]:
    """The text of each Python block, from the first to the last."""
    return re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.py"):
        old.unlink()
    for number, program in enumerate(programs(), 1):
        (folder / f"program_{number}.py").write_text(program, encoding="utf-8")
