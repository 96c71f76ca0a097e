"""Put sweeps of a course's AlexNet beside the course's own figures.

    python -m bench.course FOLDER...                # folders of fastcifar sweep: see examples/course
    python -m bench.course FOLDER... --save bench/results/course.jsonl       # then python -m bench.tables

Run this on the machine that trained, at the commit that trained.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.program import add_save_option, new_parser, run_program
from bench.record import append
from bench.tables import table
from fastcifar.errors import UserError
from fastcifar.escape import in_file_name, in_markdown
from fastcifar.experiments.named.sweep import ITSELF
from fastcifar.output import read_json, short_name
from fastcifar.report import summarize

TABLE = "course-sweeps"
COURSE: dict[str, tuple[str, str, str]] = {
    "optimizer.lr=1e-05": ("62.11%", "1.071", "-"),
    "optimizer.lr=0.0001": ("76.44%", "1.478", "-"),
    "optimizer.lr=0.0003": ("77.42%", "1.798", "417 s"),
    "optimizer.lr=0.001": ("10.00%", "2.303", "-"),
    "optimizer.lr=0.003": ("10.00%", "2.303", "-"),
    "batch_size=23": ("76.33%", "2.007", "1,775 s"),
    "batch_size=128": ("77.47%", "1.966", "755 s"),
    "batch_size=256": ("77.42%", "1.798", "417 s"),
    "batch_size=2048": ("72.72%", "0.8826", "691 s"),
    "batch_size=5000": ("60.33%", "1.105", "688 s"),
    "augment.crop=0": ("76.78%", "-", "-"),
    "augment.crop=4": ("74.20%", "-", "-"),
    "transforms.gaussian_blur.share=1.0": ("73.62%", "-", "-"),
}
"""The course's best validation accuracy, its log-loss at the end and its time, by value (parts 5.2, 5.3 and 5.5)."""


def results(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield a result, as `bench.record.append` takes it, for each value of the sweep in `folder`. Raises UserError
    where that is none, or not of AlexNet."""
    sweep = read_json(folder / "results.json")
    if sweep.get("experiment") != "sweep" or sweep["recipe"]["network"]["kind"] != "alexnet":
        raise UserError(f"{folder} holds no sweep of AlexNet; allowed: folders of examples/course")
    recipe = sweep["recipe"]
    at_once = sweep.get("parallel", 1)  # if not 1 the times say how runs share a device
    images = f"{sweep['train_size']:,} of {short_name(sweep['dataset'])}, {recipe['epochs']:g} epochs"
    for name, arm in sweep["arms"].items():
        # The course left the other fields alone: a word is its training only where it is all that differs.
        words = [word for word in arm["values"].split(", ") if name in (ITSELF, in_file_name(word))]
        theirs = {COURSE[word] for word in words if word in COURSE}
        accuracy, loss, time = theirs.pop() if len(theirs) == 1 else ("-",) * 3
        best, losses, seconds = (arm.get(each, {}).get("values", []) for each in ("best", "loss", "seconds"))
        said = summarize(best) if best else None
        failed = f"{len(arm['failed'])} of {len(arm['failed']) + len(best)} {arm['failed'][0]}" if arm["failed"] else ""
        row = {
            "values": in_markdown(arm["values"]),
            "course: best accuracy": accuracy,
            "ours": f"{said.mean:.2%}" if said else failed,
            "n": str(len(best)),
            "course: log-loss at the end": loss,
            "our log-loss": f"{statistics.fmean(losses):.4f}" if losses else "-",
            "course: time": time,
            "our time": f"{statistics.fmean(seconds):,.0f} s" if seconds and at_once == 1 else "-",
            "ours trained on": images,
        }
        spread = f"{min(best):.2%} to {max(best):.2%}" if best else failed
        kept = {"best": best, "losses": losses, "seconds": seconds, "failed": arm["failed"], "parallel": at_once}
        command = f"fastcifar sweep --recipe {recipe['name']}, see examples/course"
        yield {"table": TABLE, "row": row, "n": len(best), "spread": spread, "command": command, **kept}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = new_parser("bench.course", __doc__ or "")
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    add_save_option(parser)
    options = parser.parse_args(arguments)
    found = [result for folder in options.folders for result in results(folder)]  # all are read before any is kept
    device = json.loads((options.folders[0] / "results.json").read_text())["device"]
    print(table([{**result, "hardware": device} for result in found]))
    for result in found if options.save else ():
        append(options.save, result, device)
    return 0


if __name__ == "__main__":
    run_program("bench.course", main)
