"""The hook of mkdocs.yml: what is made while the site is built: pages of other folders, the reference, links, drawings.

Pages are written to be read on a code host too, where their links name files of the repository. In the site a link to a
file that is a page there leads to it, and one to any other file becomes the file's name; a drawing of the project's own
is put into its page, where it takes the theme's colors.
"""

from __future__ import annotations

import posixpath
import re
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import fastcifar

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig  # pyright: ignore[reportMissingImports]  (an extra)
    from mkdocs.structure.files import File, Files  # pyright: ignore[reportMissingImports]
    from mkdocs.structure.pages import Page  # pyright: ignore[reportMissingImports]

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = ("CONTRIBUTING.md", "CHANGELOG.md", "bench/results/**/*.md", "examples/**/*.md")
"""Pages of the repository outside docs/ that the site has too."""
GROUPS = {
    "Training and runs": ("training", "start", "transfer", "errors"),
    "Recipes": ("recipes",),
    "Data and augmentation": ("data", "catalogue", "transforms", "corruptions"),
    "Networks and layers": ("models",),
    "Optimizers": ("optim",),
    "Experiments": ("experiments",),
    "Reports": ("report",),
    "Diagnostics and tracking": ("diagnose", "track"),
}
"""The rooms of the public names on a page of the reference."""
_LINK = re.compile(r"(!?)\[([^\[\]]*)\]\(([^()\s]+)\)")
_ABOVE_A_LIST = re.compile(r"^((?![-*] |\d+\. |[\s|#]).+)\n(?=[-*] )", re.MULTILINE)
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def reference() -> dict[str, str]:
    """Return the pages of the reference, path to Markdown; every public name is in one."""
    homes: dict[str, str] = fastcifar._HOMES  # pyright: ignore[reportAttributeAccessIssue]  (hidden from type checkers)
    rest = {home.split(".")[1] for home in homes.values()} - {room for rooms in GROUPS.values() for room in rooms}
    pages = {}
    for title, rooms in {**GROUPS, **({"More": tuple(rest)} if rest else {})}.items():
        names = sorted((name for name, home in homes.items() if home.split(".")[1] in rooms), key=str.lower)
        lines = [
            f"# {title}",
            "",
            "Each is `fastcifar.NAME`.",
            "",
            *(f"::: {_path(homes[name], name)}\n" for name in names),
        ]
        pages[f"reference/{title.lower().replace(' ', '-')}.md"] = "\n".join(lines)
    return pages


def _path(home: str, name: str) -> str:
    """Return the path of a name; a module of the same name would hide it."""
    hidden = (ROOT / home.replace(".", "/") / f"{name}.py").exists()
    return f"{home}.{name}.{name}" if hidden else f"fastcifar.{name}"


def in_site(markdown: str, source: str, pages: set[str]) -> str:
    """Return a page's Markdown with its links as the site has them. `source` is its path in the repository, `pages` the
    paths there of all pages of the site. Raises FileNotFoundError for a link to a file that does not exist."""

    def linked(match: re.Match[str]) -> str:
        mark, text, target = match.groups()
        path, _, anchor = target.partition("#")
        if not path or re.match(r"[a-z]+:", target):
            return match[0]
        found = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if mark and found.endswith(".svg"):
            return drawing((ROOT / found).read_text(encoding="utf-8"), text)
        readme = posixpath.join(found, "README.md")
        found = readme if readme in pages else "docs/index.md" if found == "README.md" else found
        if found in pages or found.startswith("docs/"):
            here, there = (
                posixpath.relpath(each, "docs") if each.startswith("docs/") else each for each in (source, found)
            )
            place = posixpath.relpath(there, posixpath.dirname(here) or ".")
            return f"{mark}[{text}]({place}{anchor and '#' + anchor})"
        if not (ROOT / found).exists():
            raise FileNotFoundError(f"{source} has a link to {target}, which does not exist")
        return text if text.startswith("`") else f"`{found}`" if text in (path, found) else f"{text} (`{found}`)"

    parts, place = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_LINK.sub(linked, apart(markdown[place : fence.start()])), fence[0]]
        place = fence.end()
    return "".join([*parts, _LINK.sub(linked, apart(markdown[place:]))])


def apart(text: str) -> str:
    """Return Markdown with a blank line between each paragraph and a list right below it, as mkdocs needs it."""
    return _ABOVE_A_LIST.sub(r"\1\n\n", text)


def drawing(svg: str, text: str) -> str:
    """Return a drawing to stand in a page: without its own colors for light and dark, which are the page's, and with
    what is said of it for those who do not see it."""
    svg = re.sub(r"<style>.*?</style>\n?|<\?xml.*?\?>\n?", "", svg, flags=re.DOTALL).strip()
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(text)}" ', 1)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages that are made into the navigation."""
    tricks = sorted(path.name for path in (ROOT / "docs" / "tricks").glob("*.md") if path.name != "index.md")
    made = {"tricks/": ["tricks/index.md", *(f"tricks/{name}" for name in tricks)], "reference/": list(reference())}

    def filled(nav: list) -> list:
        for item in nav:
            for title, under in item.items() if isinstance(item, dict) else ():
                item[title] = made.get(under, under) if isinstance(under, str) else filled(under)
        return nav

    filled(config.nav or [])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from mkdocs.structure.files import File  # pyright: ignore[reportMissingImports]

    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, content=path.read_text(encoding="utf-8")))
    for name, text in reference().items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    pages = {_source(file) for file in files.documentation_pages()}
    return in_site(markdown, _source(page.file), pages)


def _source(file: File) -> str:
    """Return the path in the repository of a page; the reference is in none."""
    return file.src_uri if file.generated_by else f"docs/{file.src_uri}"
