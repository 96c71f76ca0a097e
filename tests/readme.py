"""Code blocks of Markdown files; run with a folder, it writes the README's Python programs there, where `make lint`
checks their types."""

import re
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the language and the text of each code block in Markdown, from the first to the last."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.py"):
        old.unlink()
    programs = [text for language, text in blocks(README.read_text(encoding="utf-8")) if language == "python"]
    for number, program in enumerate(programs, 1):
        (folder / f"program_{number}.py").write_text(program, encoding="utf-8")
