"""Code blocks of Markdown files; run with a folder, it writes the Python programs of the pages for users there, where
`make lint` checks their types."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
OWN = ROOT / "docs" / "own.md"
PROGRAMS = ROOT / "docs" / "programs.md"
MEASURING = ROOT / "docs" / "measuring.md"


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the language and the text of each code block in Markdown, from the first to the last."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.py"):
        old.unlink()
    for page in (README, OWN, PROGRAMS, MEASURING):
        programs = [text for language, text in blocks(page.read_text(encoding="utf-8")) if language == "python"]
        for number, program in enumerate(programs, 1):
            name, _, rest = program.partition("\n")  # the file that it is, as others import it
            file = name.removeprefix("# ") if name.endswith(".py") else f"{page.stem}_{number}.py".lower()
            (folder / file).write_text(rest if name.endswith(".py") else program, encoding="utf-8")
