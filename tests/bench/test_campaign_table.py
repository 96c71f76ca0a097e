"""The tables of a campaign say what its records do."""

import json
from pathlib import Path

import pytest

from bench.campaign.summary import summary
from bench.campaign.table import counting_races, tables
from bench.headline import gpu_results

RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results"


def write(folder, name, *records):
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def made(folder):
    return {table.title: [dict(zip(table.columns, row, strict=True)) for row in table.rows] for table in tables(folder)}


def run(side, number, seconds, accuracy):
    times = {"time_seconds": seconds + 0.5, "train_seconds": seconds}
    return {
        **{"what": "run", "rival": "them", "ours": "r", "side": side, "round": number, "warm_up": number == 0},
        **times,
        "accuracy": accuracy,
    }


def test_a_race_is_the_median_of_the_rounds_ratios_without_the_warm_up(tmp_path):
    rounds = [(0, 9.0, 9.0), (1, 2.0, 1.0), (2, 4.0, 3.0), (3, 4.0, 4.0)]
    runs = [
        run(side, number, seconds, 0.94)
        for number, *both in rounds
        for side, seconds in zip(("theirs", "ours"), both, strict=True)
    ]
    write(tmp_path, "race", *runs)
    row = made(tmp_path)["Whole trainings in turn with other programs"][1]
    assert row["program, clock"] == "them, ours r, without the final evaluation"
    assert row["ours / theirs (spread)"] == "0.750 (0.500 to 1.000)"
    assert (row["n"], row["our accuracy"]) == ("3", "94.00%")


def test_a_rival_that_does_not_reach_its_own_accuracy_has_no_ratio(tmp_path):
    """Nor a place in the README."""
    (tmp_path / "campaign").mkdir()
    device = {"device": {"name": "GPU"}, "time": 2e9, "rival": "fulcrum-e1"}
    for reached, counts in ((0.9380, True), (0.9370, False)):
        runs = [{**run(side, 1, 2.0, 0.941 if side == "ours" else reached), **device} for side in ("theirs", "ours")]
        write(tmp_path / "campaign", "race", *runs)
        row = made(tmp_path / "campaign")["Whole trainings in turn with other programs"][1]
        told = "1.000 (1.000 to 1.000)" if counts else "left out: 93.70% is not its own 94.05%"
        assert row["ours / theirs (spread)"] == told
        assert len(list(counting_races(runs))) == counts
        assert len(gpu_results(tmp_path)) == counts


def test_the_parts_of_a_step_add_up_to_it(tmp_path):
    kernels = {
        "sm90_xmma_fprop_implicit_gemm": 0.5,
        "_gradient_kernel": 0.25,
        "_apply_kernel": 0.125,
        "void at::native::multi_tensor_apply_kernel<Copy>": 0.0625,
        "unheard_of": 0.03125,
    }
    rows = [{"name": name, "calls": 1.0, "ms": ms} for name, ms in kernels.items()]
    profile = {"what": "profile", "recipe": "r", "size": 32, "ms": 1.0, "launches": 5.0, "by_kernel": rows}
    write(tmp_path, "steps", profile)
    (row,) = made(tmp_path)["A step by part, us of kernels (some run at once)"]
    numbers = {name: int(text) for name, text in row.items() if name != "recipe, stage"}
    assert numbers.pop("all") == 1000
    assert numbers == {
        **dict.fromkeys(numbers, 0),
        **{"convolutions": 500, "pool, batch norm, activation": 250, "Newton-Schulz": 125},
        **{"gradients into flat buffers": 62, "all else": 62},  # what is in no row with what fits nowhere
    }


def test_an_operator_is_set_beside_its_other_paths(tmp_path):
    common = {"what": "speed", "operation": "augment", "shape": "float16[2x3] gelu (abc)", "bytes": 2_000_000}
    write(
        tmp_path,
        "kernels",
        {"what": "error", "shape": common["shape"], "worst": 2e-4},
        {**common, "variant": "kernel", "seconds": 2e-6, "share_of_copy": 0.5},
        {**common, "variant": "reference", "seconds": 5e-6, "share_of_copy": 0.2},
    )
    (row,) = made(tmp_path)["Operators as steps and evaluations call them"]
    assert list(row.values()) == [
        *("augment float16[2x3] gelu (abc)", "2.0 us", "2.00 MB", "50%"),
        *("2.50", "-", "2.0e-04"),
    ]


def test_sizes_of_a_batch_end_with_the_one_that_is_too_large(tmp_path):
    spread = {"images_per_second": 2000.0, "least": 1500.0, "most": 2500.0, "n": 5, "memory": 3 * 2**29}
    size = {"what": "size", "recipe": "davidnet", "batch_size": 64, **spread}
    end = {"what": "end", "recipe": "davidnet", "too_large": 128, "ended": "out of memory"}
    write(tmp_path, "throughput", size, end, {**end, "recipe": "speedrun94", "too_large": None})
    first, last = made(tmp_path)["Training steps by batch size"]
    assert list(first.values()) == ["davidnet, 64 images", "2,000", "1,500 to 2,500", "5", "1,536 MiB"]
    assert list(last.values()) == ["davidnet, 128 images", "-", "-", "-", "too much"]
    lines = summary(tmp_path)
    assert lines[1] == "  davidnet: 2,000 images/s at batch size 64; 1.5 GiB at 64, the last that fitted"


@pytest.mark.parametrize("folder", sorted(path.parent for path in RESULTS.glob("*/*/README.md")), ids=lambda p: p.name)
def test_committed_tables_are_those_that_the_records_make(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert text == "\n".join(table.markdown() for table in tables(folder))
