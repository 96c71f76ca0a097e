"""The campaign's parts: in processes of their own, in turn, and what each of them does."""

import dataclasses
import importlib
import io
import os
import signal
import subprocess
import tarfile
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.campaign import data, kernels
from bench.campaign import tests as device_tests
from bench.campaign.campaign import Campaign, CaptureFailed, append_record, read_records
from bench.campaign.kernels import compiled, errors
from bench.campaign.process import Part, PartProcess
from bench.campaign.recipes import VARIANTS, get_recipe
from bench.campaign.schedule import Stage
from bench.campaign.sizes import OTHERS, sizes
from bench.campaign.trainings import run_strictly, smoke, trainings
from bench.recorded_cases import RecordedCase
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.training import Trainer


def results(records):
    return [record for record in records if record["what"] not in ("done", "failed")]


# Parts in processes of their own --------------------------------------------------------------------------------------


@pytest.fixture
def campaign(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return Campaign(tmp_path)


def run_part(campaign, run, limit=30.0):
    """How a part with this generator ended, and its results."""
    process = PartProcess(Part("part", run, "part", 1.0), campaign, limit)
    process.wait()
    process.conclude(campaign)
    records = read_records(campaign.path("part"))
    return records[-1], results(records)


def test_a_part_that_raises_keeps_what_it_found_and_says_why(campaign):
    def failing(_):
        yield {"what": "before"}
        print("on the way")
        raise ValueError("no such kernel")

    outcome, found = run_part(campaign, failing)
    assert (outcome["what"], outcome["reason"]) == ("failed", "exit code 1: ValueError: no such kernel")
    assert outcome["printed"][0] == "on the way" and any("in failing" in line for line in outcome["printed"])
    assert [record["what"] for record in found] == ["before"]
    assert "no such kernel" in (campaign.out / "log.txt").read_text()


def test_a_part_that_is_ended_takes_along_what_it_started(campaign):
    def stubborn(_):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        yield {"what": "started", "pid": subprocess.Popen(["sleep", "1000"]).pid}
        time.sleep(1000)

    outcome, (started,) = run_part(campaign, stubborn, limit=1.0)
    assert outcome["reason"] == "took more than its 1 s and was ended"
    deadline = time.monotonic() + 10
    while _lives(started["pid"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path):
    path = tmp_path / "results.jsonl"
    append_record(path, {"what": "first"})
    with path.open("a") as file:
        file.write('{"what": "cut o')
    append_record(path, {"what": "second"})
    assert [record["what"] for record in read_records(path)] == ["first", "second"]


def test_rivals_compile_while_others_run_and_are_raced_in_turn_when_all_are_ready(campaign):
    """The first is ready while `a` runs, the second only after all parts are over."""

    def compiling(campaign, seconds):
        time.sleep(seconds)
        yield {"what": "compiled"}
        campaign = campaign.wait_for_turn()
        yield {"what": "raced", "time left": 0 < campaign.seconds_left < 20}

    def part(_, seconds):
        yield {"what": "began"}
        time.sleep(seconds)
        yield {"what": "ended"}

    parts = [Part(name, partial(part, seconds=2.0), "order", 0.1) for name in ("a", "b")]
    races = [
        Part("race", partial(compiling, seconds=seconds), "order", 1.0, rival)
        for rival, seconds in (("x", 0.8), ("y", 6.0))
    ]
    told = []
    Stage(campaign, 60.0, {}, told.append).run(parts, races)
    order = [(record["part"], record["what"]) for record in results(read_records(campaign.path("order")))]
    assert order == [
        ("a", "began"),
        ("race:x", "compiled"),
        ("a", "ended"),
        ("b", "began"),
        ("b", "ended"),
        ("race:y", "compiled"),
        ("race:x", "raced"),
        ("race:y", "raced"),
    ]
    assert [line.partition(":")[0] for line in told] == ["a", "b", "race", "race"]
    beside = {record["part"]: record.get("beside") for record in results(read_records(campaign.path("order")))}
    assert beside == {"a": "race:x, race:y", "b": "race:y", "race:x": None, "race:y": None}


def test_a_rival_that_is_not_ready_in_time_gives_way_to_one_that_is(campaign):
    def compiling(campaign, seconds):
        time.sleep(seconds)
        campaign.wait_for_turn()
        yield {"what": "raced"}

    races = [Part("race", partial(compiling, seconds=seconds), "race", 1.0, f"x{seconds}") for seconds in (1000, 0)]
    told = []
    Stage(campaign, 6.0, {}, told.append).run([], races)
    assert told[0].startswith("race:x1000: 0 results") and told[0].endswith("and was ended")
    assert told[1].startswith("race:x0: 1 results") and "failed" not in told[1]


def test_a_race_that_hangs_is_ended_and_what_has_no_time_left_is_left_out(campaign):
    def hanging(_):
        time.sleep(1000)
        yield {}

    told = []
    part = Part("part", lambda _: iter([{"what": "ran"}]), "part", 0.5)
    Stage(campaign, 5.0, {"part": 100.0}, told.append).run([part], [Part("race", hanging, "race", 1.0, "x")])
    assert told[0].startswith("race:x: 0 results in ") and told[0].endswith("and was ended")
    assert told[1] == "part: left out, the time is up"


def test_a_rival_that_hangs_in_its_turn_leaves_the_others_and_what_waits_their_time(campaign):
    def racing(campaign, hangs):
        campaign = campaign.wait_for_turn()
        time.sleep(1000 if hangs else 0)
        yield {"what": "raced", "seconds": campaign.stops - time.monotonic()}

    told = []
    parts = [Part("part", lambda _: iter([{"what": "ran"}]), "part", 0.5)]
    races = [Part("race", partial(racing, hangs=name == "x"), "race", 1.0, name) for name in ("x", "y", "z")]
    Stage(campaign, 30.0, {"race": 1.0, "part": 25.0}, told.append).run(parts, races)
    outcomes = {line.partition(" in ")[0]: line.endswith("and was ended") for line in told}
    assert outcomes == {"race:x: 0 results": True, "race:y: 1 results": False, "race:z: 1 results": False} | {
        "part: 1 results": False
    }
    assert all(0 < record["seconds"] <= 3 for record in results(read_records(campaign.path("race"))))


def test_of_a_parts_limits_the_one_of_its_whole_name_counts(campaign):
    parts = [Part("part", lambda _: iter([]), "part", 0.5, of) for of in ("", "x", "y")]
    stage = Stage(campaign, 20.0, {"part": 3.0, "part:x": 5.0}, print)
    assert [stage._wanted(part, part.share) for part in parts] == [3.0, 5.0, 3.0]
    assert Stage(campaign, 20.0, {"part:x": 5.0}, print)._wanted(parts[2], 0.5) == 10.0


def test_the_time_kept_for_a_race_that_fails_is_given_to_others(campaign):
    def failing(_):
        time.sleep(0.2)
        raise ValueError("it does not compile")
        yield

    told = []
    part = Part("part", lambda _: iter([{"what": "ran"}]), "part", 0.5)
    Stage(campaign, 20.0, {"part": 64.0}, told.append).run([part], [Part("race", failing, "race", 1.0, "x")])
    assert "it does not compile" in told[0]
    assert told[1].startswith("part: 1 results in")


# What the parts do ----------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(campaign, one_thread):
    return dataclasses.replace(campaign, device_name="cpu", tiny=True)


def test_the_operations_written_down_by_hand_are_timed(tiny):
    records = list(compiled(tiny))
    assert {record["variant"] for record in records} == {"kernel"}, "nothing is compiled in a tiny one on a CPU"
    assert {record["operation"] for record in records} >= {"norm_act_pool", "augment", "cross_entropy", "flat_sgd"}
    assert all(record["seconds"] > 0 for record in records)


def test_operators_are_timed_with_other_sizes_which_are_theirs_alone(tiny, one_thread):
    pytest.importorskip("triton", reason="Triton is not installed")
    tables = [
        importlib.import_module(f"fastcifar.kernels.{name}").SIZES for name in {file for file, _ in OTHERS.values()}
    ]
    before = [(dict(table.generations), table.interpreted) for table in tables]
    found = list(sizes(tiny))
    assert [(table.generations, table.interpreted) for table in tables] == before
    by_shape = {}
    for record in found:
        by_shape.setdefault(record["shape"], []).append(record)
    of_gpus = {"conv_pool", "conv_pool_inference", "conv_pool_backward"}  # for half precision
    assert {record["operation"] for record in found} == OTHERS.keys() - of_gpus
    for present, other in by_shape.values():
        assert present["now"] and not other["now"] and present["sizes"].keys() >= other["sizes"].keys()
        assert present["sizes"] != other["sizes"] and min(present["seconds"], other["seconds"]) > 0


def test_a_test_that_fails_is_named_at_once_and_the_others_are_counted(tiny, tmp_path, monkeypatch):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_few.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('of', ['PASSED it', 'no'])\n"
        "def test_words(of):\n    assert of != 'no', 'not no'\n"
        "def test_left_out():\n    pytest.skip('for once')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(device_tests.ROOT))  # where the plugin is
    monkeypatch.setattr(device_tests, "ROOT", tmp_path)
    monkeypatch.setattr(device_tests, "TINY", ["tests"])
    finding, counts = device_tests.tests(tiny)
    assert (finding["what"], finding["program"]) == ("finding", "tests/test_few.py::test_words[no]")
    assert finding["found"] == "failed: AssertionError: not no" and "of != 'no'" in finding["printed"]
    assert [counts[name] for name in ("passed", "failed", "skipped", "exit_code")] == [1, 1, 1, 1]

    late = dataclasses.replace(tiny, ends=0.0)
    (counts,) = (record for record in device_tests.tests(late) if record["what"] == "tests")
    assert counts["exit_code"] not in (0, 1)
    assert (counts["passed"], counts["failed"], counts["skipped"]) == (1, 0, 0), "what was known by then, and no more"


def test_a_training_without_its_capture_is_no_result(tiny, monkeypatch):
    failed = {"captured": False, "not_captured": "a kernel waits"}
    monkeypatch.setattr(Campaign, "device", torch.device("cuda"))
    tiny.require_capture("davidnet", captured=True, not_captured=None)
    with pytest.raises(CaptureFailed, match="davidnet: a kernel waits"):
        tiny.require_capture("davidnet", **failed)
    monkeypatch.setattr(Campaign, "device", torch.device("cpu"))
    tiny.require_capture("davidnet", **failed)
    with pytest.raises(CaptureFailed):
        list(trainings(dataclasses.replace(tiny, faults=frozenset(["nocapture:davidnet"])), "davidnet"))


def test_a_long_first_training_does_not_end_the_part_before_its_time(tiny, one_thread, monkeypatch):
    clock, real = [0.0], Trainer.run

    def run(trainer, seed, **how):
        clock[0] += 10.0 if seed == 0 else 1.0
        return real(trainer, seed, **how)

    monkeypatch.setattr(Trainer, "run", run)
    monkeypatch.setattr("bench.campaign.trainings._WANTED", {"speedrun94": 20})
    monkeypatch.setattr("bench.campaign.campaign.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("bench.campaign.trainings.dataset", lambda campaign: make_synthetic(64, 16))
    monkeypatch.setattr("bench.campaign.trainings.get_recipe", lambda name, _: get_recipe(name, tiny=True))
    few = dataclasses.replace(tiny, tiny=False, ends=15.0)
    assert [record["seed"] for record in trainings(few, "speedrun94")] == [0, 1, 2, 3, 4, 5]


def test_waiting_is_an_error_from_the_first_step_to_the_last(one_thread, monkeypatch):
    modes, trainer = [], Trainer(get_recipe("davidnet", tiny=True), make_synthetic(128, 32), "cpu")
    monkeypatch.setattr("bench.campaign.trainings._set_waiting", lambda _, mode: modes.append(mode))
    average = trainer.timeline.is_averaged
    monkeypatch.setattr(trainer.timeline, "is_averaged", lambda step: modes.append(step) or average(step))
    run = run_strictly(trainer, 0)
    assert modes == ["error", 1, 2, 3, 4, "default", "default"]
    assert run.seed == 0


def test_a_host_that_waits_is_a_finding_and_the_training_is_run_again(tiny, monkeypatch):
    def waits(trainer, seed):
        raise RuntimeError("called a synchronizing CUDA operation")

    monkeypatch.setattr("bench.campaign.trainings.run_strictly", waits)
    records = list(smoke(tiny, "speedrun94"))
    assert [record["what"] for record in records] == ["images", "training", "finding", "training", "training"]
    assert "called a synchronizing CUDA operation" in records[2]["found"]


def test_an_operator_that_raises_is_a_finding_and_the_others_have_their_turn(tiny, one_thread, monkeypatch):
    real = RecordedCase.relative_errors

    def fails(case):
        if case.operation == "flat_sgd":
            raise RuntimeError("an illegal memory access\nand more")
        return real(case)

    monkeypatch.setattr(RecordedCase, "relative_errors", fails)
    records = list(errors(tiny))
    findings = [record for record in records if record["what"] == "finding"]
    assert {record["program"] for record in findings} == {"flat_sgd"}
    assert findings[0]["found"] == "an illegal memory access"
    assert {record["operation"] for record in records if record["what"] == "error"} >= {"augment", "newton_schulz"}


def test_a_step_that_raises_leaves_the_other_recipes_their_operators(tiny, one_thread, monkeypatch):
    def pieces(trainer):
        if trainer.recipe.network.kind == "speedrun":
            yield "stage 0", lambda: torch.ones(2) @ torch.ones(3)
        else:
            yield from real(trainer)

    real = kernels._pieces
    monkeypatch.setattr(kernels, "_pieces", pieces)
    found, failures = kernels.cases(tiny)
    assert [record["program"] for record in failures] == ["speedrun94, stage 0"]
    assert {case.operation for case, _ in found} >= {"norm_act_pool", "cross_entropy_step"}


def test_every_recipe_can_be_made():
    for name in VARIANTS:
        assert get_recipe(name, tiny=False).name == name
        assert get_recipe(name, tiny=True).batch_size == 32
    assert get_recipe("speedrun94-1536", tiny=False).batch_size == 1536


def test_the_smoke_reads_a_part_of_the_data_in_either_form(tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    monkeypatch.setattr(data, "FIRST", 30)
    pixels = np.random.default_rng(0).integers(256, size=(30, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(40, dtype=np.uint8) % 10
    strips, batches = tmp_path / "strips", tmp_path / "batches" / "cifar-10-batches-bin"
    for folder in (strips, batches):
        folder.mkdir(parents=True)
    np.savez(strips / "labels.npz", labels=labels)
    with tarfile.open(strips / "part1.tar", "w") as tar:
        for number in (2, 0, 1):
            file = io.BytesIO()
            image.fromarray(pixels[10 * number : 10 * number + 10].reshape(320, 32, 3)).save(
                file, "webp", lossless=True
            )
            member = tarfile.TarInfo(f"{number:03}.webp")
            member.size = file.tell()
            tar.addfile(member, io.BytesIO(file.getvalue()))
    records = np.concatenate([labels[:30, None], pixels.transpose(0, 3, 1, 2).reshape(30, -1)], axis=1)
    for number in range(3):
        (batches / f"data_batch_{number + 1}.bin").write_bytes(records[10 * number : 10 * number + 10].tobytes())
    for folder in (strips, tmp_path / "batches", batches):
        read, read_labels = data.read_first(folder)
        assert np.array_equal(read, pixels) and np.array_equal(read_labels, labels[:30])
    assert data.read_first(tmp_path) is data.read_first(None) is None
    (batches / "data_batch_2.bin").write_bytes(b"half")
    with pytest.raises(UserError, match="cannot read the first 30 images in"):
        data.read_first(batches)
    (strips / "labels.npz").write_bytes((strips / "labels.npz").read_bytes()[:100])
    with pytest.raises(UserError, match="cannot read the first 30 images in"):
        data.read_first(strips)


@pytest.mark.parametrize(
    ("does", "said"),
    [
        (
            lambda _: os.kill(os.getpid(), signal.SIGKILL),
            "the process that looked at device and data died, exit code -9",
        ),
        (lambda _: time.sleep(1000), "device and data were looked at for 2 s without an answer"),
    ],
)
def test_a_look_at_device_and_data_that_dies_or_hangs_ends_in_one_line(does, said, monkeypatch):
    monkeypatch.setattr(data, "resolve_device", does)
    monkeypatch.setattr(data, "_CHECK_SECONDS", 2)
    with pytest.raises(UserError, match=f"^{said}$"):
        data.check("cpu", None, wants_whole=False, wants_gpu=False)


def test_the_smoke_trains_on_the_first_images_alone(campaign, monkeypatch):
    monkeypatch.setattr(data, "FIRST", 30)
    monkeypatch.setattr(data, "HELD", 5)
    read = np.arange(30 * 3072, dtype=np.uint64).astype(np.uint8).reshape(30, 32, 32, 3), np.arange(30) % 10
    found = data.smoke_dataset(dataclasses.replace(campaign, device_name="cpu", first_images=read))
    assert (len(found.train), len(found.test), found.holdout) == (25, 5, 5)
    assert torch.equal(found.test.images, torch.from_numpy(read[0][25:]))
