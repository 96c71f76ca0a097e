"""The results of a campaign as Markdown.

python -m bench.campaign.table DIR > DIR/README.md    # DIR: the --out of the campaign
"""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

from bench.campaign.campaign import OUTCOMES, Line, read_records
from bench.peers.programs import missed
from bench.peers.race import SIDES
from bench.program import new_parser, run_program
from fastcifar.errors import UserError
from fastcifar.report.statistics import summarize
from fastcifar.report.tables import Table

CLOCKS = {"time_seconds": "with the final evaluation", "train_seconds": "without the final evaluation"}
PARTS = (
    (
        "convolutions",
        "xmma|convolve|ImplicitGemm|nhwcAddPadding|implicit_gemm|fprop|wgrad|dgrad|ReduceSplitK|_conv_pool|_filters",
    ),
    ("pool, batch norm, activation", "_moments|_normali[sz]e|_slope_sums|_gradient_kernel"),
    ("Newton-Schulz", "^_(step|gram|apply|small)_kernel"),
    ("optimizer", "_direction|_momentum|_update_kernel|_flat_sgd|_flat_ema"),
    ("images and whitening", "_augment|_whiten|GeluCUDA"),
    ("loss", "_cross_entropy"),
    ("gradients into flat buffers", "multi_tensor_apply"),
    ("head", "max_pool|cutlass|gemm|splitKreduce"),
)
"""The parts of a step, and the pattern of their kernels' names; the first that fits counts."""
_REST = "all else"


def tables(out: Path) -> Iterator[Table]:
    """Yield the tables of the records in `out`."""
    records = {path.stem: _results(path) for path in out.glob("*.jsonl")}
    makers = {
        "ceilings": (ceilings_table,),
        "race": (races_table,),
        "trainings": (_trainings,),
        "smoke": (_smoke,),
        "steps": (_steps, _parts),
        "kernels": (_operators,),
        "sizes": (sizes_table,),
        "cold": (cold_table,),
        "throughput": (throughput_table,),
        "screen": (screen_table,),
    }
    for name, made in makers.items():
        for make in made if records.get(name) else ():
            yield make(records[name])


def _results(path: Path) -> list[Line]:
    return [record for record in read_records(path) if record["what"] not in OUTCOMES]


def ceilings_table(records: list[Line]) -> Table:
    rows = []
    title = "Ceilings"
    for record in records:
        if record["what"] == "environment":
            versions = ", ".join(f"{name} {record[name]}" for name in ("torch", "triton", "cudnn") if name in record)
            title = f"Ceilings: {record['device'].get('name', 'CPU')}, {versions}"
        elif record["what"] == "copy":
            rows.append(("copy, bytes read and written", f"{record['rate'] / 1e12:.2f} TB/s"))
        elif record["what"] == "product":
            rows.append((f"product of {record['dtype'].removeprefix('torch.')} matrices", _tflops(record["rate"])))
        elif record["what"] == "convolutions":
            seconds, flop = convolution_totals(record)
            place = _place(record) + (", cuDNN's search without a limit" if record.get("search") == 0 else "")
            rows.append((f"convolutions of a step, {place}", f"{_us(seconds)}, {_tflops(flop / seconds)}"))
        elif record["what"] == "channels":
            passes = ", ".join(f"{which} {_us(seconds)}" for which, seconds in record["seconds"].items())
            rows.append((f"first convolution of {record['channels']} channels, {record['pixels']} pixels", passes))
    return Table(title, ("what", "rate"), tuple(rows))


def races(records: list[Line]) -> Iterator[tuple[str, str, list[Line]]]:
    """Give each rival and recipe of ours of which both sides raced, with the runs that count."""
    measured = [run for run in only(records, "run") if not run["warm_up"]]
    for rival, of_rival in grouped(measured, "rival").items():
        for ours, runs in grouped(of_rival, "ours").items():
            if len(grouped(runs, "side")) == len(SIDES):
                yield rival, ours, runs


def counting_races(records: list[Line]) -> Iterator[tuple[str, str, list[Line]]]:
    """Give `races` without those in which the rival did not reach its own accuracy."""
    for rival, ours, runs in races(records):
        if not missed(rival, known(grouped(runs, "side")["theirs"], "accuracy")):
            yield rival, ours, runs


def races_table(records: list[Line]) -> Table:
    rows = []
    for rival, ours, runs in races(records):
        sides = grouped(runs, "side")
        left_out = missed(rival, known(sides["theirs"], "accuracy"))
        for clock, words in CLOCKS.items():
            ratios = ratios_of(sides, clock)
            if ratios:
                each = [mean(known(sides[side], clock)) for side in SIDES]
                accuracies = [known(sides[side], "accuracy") for side in SIDES]
                reached = [f"{statistics.fmean(found):.2%}" if found else "-" for found in accuracies]
                told = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
                rows.append((f"{rival}, ours {ours}, {words}", *each, *reached, left_out or told, str(len(ratios))))
    columns = ("program, clock", "theirs", "ours", "their accuracy", "our accuracy", "ours / theirs (spread)", "n")
    return Table("Whole trainings in turn with other programs", columns, tuple(rows))


def _smoke(records: list[Line]) -> Table:
    trainings = _trainings(only(records, "training"))
    return dataclasses.replace(trainings, title="Trainings on 25,000 images, tested on 5,000 others")


def _trainings(records: list[Line]) -> Table:
    rows = []
    for recipe, runs in grouped(records, "recipe").items():
        alone = undisturbed(runs)
        accuracy = summarize([run["tta_accuracy"] for run in runs])
        told = f"{accuracy.mean:.2%}"
        if accuracy.interval:
            told += f" ({accuracy.interval[0]:.2%} to {accuracy.interval[1]:.2%})"
        seconds = [mean([run[clock] for run in alone]) if alone else "-" for clock in CLOCKS]
        rows.append((recipe, told, str(accuracy.n), *seconds, str(len(alone))))
    columns = ("recipe", "TTA accuracy (95% interval)", "n", *CLOCKS.values(), "n undisturbed")
    return Table("Trainings", columns, tuple(rows))


def _steps(records: list[Line]) -> Table:
    rows = []
    for record in only(records, "step"):
        beside = " (beside another program's compilation)" if "beside" in record else ""
        rows.append((_place(record) + beside, *(_us(seconds) for seconds in record["seconds"].values())))
    return Table("A step", ("recipe, stage", "in training", "replayed", "launched one by one"), tuple(rows))


def _parts(records: list[Line]) -> Table:
    names = [*(name for name, _ in PARTS), _REST]
    rows = []
    for record in only(records, "profile"):
        spent = dict.fromkeys(names, 0.0)
        for row in record["by_kernel"]:
            spent[next((name for name, words in PARTS if re.search(words, row["name"])), _REST)] += row["ms"]
        spent[_REST] += record["ms"] - sum(row["ms"] for row in record["by_kernel"])
        rows.append((_place(record), *(f"{1000 * ms:.0f}" for ms in spent.values()), f"{1000 * record['ms']:.0f}"))
    return Table("A step by part, us of kernels (some run at once)", ("recipe, stage", *names, "all"), tuple(rows))


def _operators(records: list[Line]) -> Table:
    by_shape: dict[tuple[str, str], dict[str, Line]] = {}
    for record in only(records, "speed"):
        by_shape.setdefault((record["operation"], record["shape"]), {})[record["variant"]] = record
    errors = {record["shape"]: record["worst"] for record in only(records, "error")}
    rows = []
    for (operation, shape), variants in by_shape.items():
        kernel = variants.get("kernel")
        if kernel:
            others = [variants[name]["seconds"] / kernel["seconds"] if name in variants else None for name in _OTHERS]
            ratios = ["-" if ratio is None else f"{ratio:.2f}" for ratio in others]
            error = f"{errors[shape]:.1e}" if shape in errors else "-"
            size = f"{kernel['bytes'] / 1e6:.2f} MB"
            where = f"{operation} {_short(shape)}"
            rows.append((where, _us(kernel["seconds"]), size, f"{kernel['share_of_copy']:.0%}", *ratios, error))
    columns = ("operator", "time", "bytes", "of the copy rate", "plain torch / ours", "torch.compile / ours", "error")
    return Table("Operators as steps and evaluations call them", columns, tuple(rows))


_OTHERS = ("reference", "compiled")


def sizes_table(records: list[Line]) -> Table:
    """Return, for each operator, the seconds of all its forms with the sizes of then and with the best."""
    rows = []
    for operation, found in grouped(only(records, "sizes"), "operation").items():
        now, totals = totals_by_sizes(found)
        where = f"{operation}, {sum(record['now'] for record in found)} forms"
        for words in [now, *sorted(totals, key=totals.__getitem__)[:_BEST]]:
            then = " (then)" if words == now else ""
            rows.append((where, words + then, _us(totals[words]), str(len(totals))))
    return Table("Operators with other sizes", ("operator", "sizes", "time", "tried"), tuple(rows))


_BEST = 3


def cold_table(records: list[Line]) -> Table:
    rows = [(record["program"], f"{record['process_seconds']:.1f} s") for record in only(records, "cold")]
    return Table("From process start to the first accuracy, empty caches", ("program", "seconds"), tuple(rows))


def throughput_table(records: list[Line]) -> Table:
    rows = []
    for record in only(records, "size"):
        spread = f"{record['least']:,.0f} to {record['most']:,.0f}"
        memory = f"{record['memory'] / 2**20:,.0f} MiB"
        where = f"{record['recipe']}, {record['batch_size']:,} images"
        rows.append((where, f"{record['images_per_second']:,.0f}", spread, str(record["n"]), memory))
    rows += [(f"{end['recipe']}, {end['too_large']:,} images", *"---", "too much") for end in _full(records)]
    columns = ("recipe, batch", "images/s, median", "least to most", "n", "memory")
    return Table("Training steps by batch size", columns, tuple(rows))


def _full(records: list[Line]) -> list[Line]:
    return [record for record in only(records, "end") if record["too_large"]]


def screen_table(records: list[Line]) -> Table:
    """Return the effects after the last whole round; what else is to be said of them is in the title."""
    found = only(records, "effects")
    if not found:
        return Table("Changes, before a whole round of the design", ("change",), ())
    title, columns, rows = (found[-1]["table"][name] for name in ("title", "columns", "rows"))
    return Table("; ".join([title, *found[-1]["remarks"]]), tuple(columns), tuple(map(tuple, rows)))


def ratios_of(sides: dict[str, list[Line]], clock: str) -> list[float]:
    """Return our seconds over theirs in each round in which both are known."""
    theirs, ours = (
        {(run.get("folder"), run["round"]): run.get(clock) for run in sides[side]}  # rounds count anew in each campaign
        for side in SIDES
    )
    return [ours[number] / theirs[number] for number in theirs if theirs[number] and ours.get(number)]


def totals_by_sizes(found: list[Line]) -> tuple[str, dict[str, float]]:
    """Return, for an operator's records, the sizes of then, and by sizes the seconds of all forms; only sizes that as
    many forms were measured with."""
    seconds = grouped([{**record, "words": words_of(record["sizes"])} for record in found], "words")
    now = next(words for words, records in seconds.items() if records[0]["now"])
    totals = {
        words: sum(record["seconds"] * sum(record["places"].values()) for record in records)
        for words, records in seconds.items()
        if len(records) == len(seconds[now])
    }
    return now, totals


def words_of(sizes: Line) -> str:
    """Return the sizes that an operator was launched with, in a line."""
    told = {name: value if isinstance(value, dict) else {"": value} for name, value in sizes.items()}
    return ", ".join(
        f"{name}: " + " ".join(f"{key} {one}".strip() for key, one in v.items()) for name, v in told.items()
    )


def convolution_totals(record: Line) -> tuple[float, float]:
    """Return seconds and FLOP of all passes of a stage's convolutions."""
    seconds = sum(sum(layer["seconds"].values()) for layer in record["layers"])
    return seconds, sum(layer["flop"] * len(layer["seconds"]) for layer in record["layers"])


def undisturbed(runs: list[Line]) -> list[Line]:
    """Return the trainings that nothing disturbed, without the first ones of a process."""
    return [run for run in runs if not run["first_in_process"] and "beside" not in run]


def only(records: list[Line], what: str) -> list[Line]:
    return [record for record in records if record["what"] == what]


def grouped(records: list[Line], key: str) -> dict[str, list[Line]]:
    groups: dict[str, list[Line]] = {}
    for record in records:
        groups.setdefault(record[key], []).append(record)
    return groups


def _short(shape: str) -> str:
    """Return a case's first tensor and what tells equal ones apart; a shape with a colon is a name already."""
    words = shape.split()
    notable = [word for word in words[1:] if word in ("True", "gelu", "celu")]
    return shape if ":" in shape else " ".join([words[0], *notable, words[-1]])


def known(runs: list[Line], key: str) -> list[float]:
    """Return the values under a key, of the runs that have one."""
    return [run[key] for run in runs if run.get(key) is not None]


def _place(record: Line) -> str:
    return f"{record['recipe']} at {record['size']} pixels"


def mean(seconds: list[float]) -> str:
    """Return mean and standard deviation."""
    found = summarize(seconds)
    return f"{found.mean:.3f} s" + ("" if found.std is None else f" ± {found.std:.3f}")


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us"


def _tflops(rate: float) -> str:
    return f"{rate / 1e12:.0f} TFLOP/s"


def main() -> int:
    parser = new_parser("bench.campaign.table", __doc__)
    parser.add_argument("out", type=Path, metavar="DIR")
    out = parser.parse_args().out
    if not out.is_dir():
        raise UserError(f"{out} is no folder; allowed: the --out of a campaign")
    print("\n".join(table.markdown() for table in tables(out)), end="")
    return 0


if __name__ == "__main__":
    run_program("bench.campaign.table", main)
