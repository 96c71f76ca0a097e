"""Make the pages that are whole results and declarations: docs/recipes.md, docs/tricks/ and the README's figure.

python -m bench.pages            # writes them anew, and removes those whose rows are gone
python -m bench.pages --check    # exit code 1 where they are not those that results and declarations make
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.campaign.table import counting_races, grouped
from bench.drawing import Mark, scatter
from bench.headline import by_device, campaign_lines, main_trainings, reached
from bench.program import new_parser
from bench.recipe_page import recipe_page
from bench.record import ROOT
from bench.tables import read_results
from bench.trick_pages import trick_pages
from bench.trick_rows import rows
from fastcifar.report.statistics import Summary, summarize

TRICKS = Path("docs", "tricks")


def pages(folder: Path) -> dict[Path, str]:
    """Return path to content of all files that are made, of the folder of results."""
    tricks = {TRICKS / name: text for name, text in trick_pages(rows(folder)).items()}
    on = " and ".join(by_device(campaign_lines(folder / "h100", "trainings")))
    seconds = f"train_seconds, {on}; *: others beside"
    figure = scatter(list(_speeds(folder / "h100")), seconds, "CIFAR-10 test accuracy with TTA, 95% interval")
    recipes = recipe_page(read_results(folder), folder)
    return {Path("docs", "recipes.md"): recipes, Path("docs", "figures", "speed.svg"): figure, **tricks}


def _speeds(campaigns: Path) -> Iterator[Mark]:
    """Give the marks of the README's figure: recipes alone on the machine, then each race's two sides. Where there are
    several devices each mark says its own."""
    trainings, raced = main_trainings(campaigns), by_device(campaign_lines(campaigns, "race"))
    devices = {*raced, *by_device(line for lines in trainings.values() for line in lines)}
    where = {device: f", {device}" * (len(devices) > 1) for device in devices}
    for recipe, lines in trainings.items():
        for device, trained in by_device(lines).items():
            accuracy, timed = reached(trained)
            if timed:
                yield _mark(recipe + where[device], accuracy, timed, 0, f"n={accuracy.n}, {len(timed)} timed")
    for device, lines in raced.items():
        for rival, ours, runs in counting_races(lines):
            for side, of_side in grouped(runs, "side").items():
                name, color = (rival, 1) if side == "theirs" else (f"{ours}, raced", 2)
                beside = "*" if any("beside" in run for run in of_side) else ""
                accuracy = summarize([run["accuracy"] for run in of_side])
                timed = [run["train_seconds"] for run in of_side]
                yield _mark(f"{name}{beside}{where[device]}", accuracy, timed, color, f"n={accuracy.n}")


def _mark(name: str, accuracy: Summary, timed: list[float], color: int, note: str) -> Mark:
    seconds = statistics.median(timed)
    told = f"{accuracy.mean:.2%}, {seconds:.2f} s, {note}"
    return Mark(name, accuracy.mean, accuracy.interval, seconds, color, told)


def main() -> int:
    parser = new_parser("bench.pages", __doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    made = {ROOT / path: text for path, text in pages(ROOT / "bench" / "results").items()}
    stale = [path for path in (ROOT / TRICKS).glob("*") if path not in made]
    stale += [path for path, text in made.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in () if check else stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(made[path], encoding="utf-8") if path in made else path.unlink()
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
