"""The campaign runs whole on a CPU, so that it cannot be broken on the day that a GPU is at hand; and whatever fails in
it costs one part."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.campaign import __main__ as command
from bench.campaign import images, smoke
from bench.campaign.campaign import Campaign, append_record, read_records
from bench.campaign.captured import CaptureFailed, require_capture
from bench.campaign.cold import cold
from bench.campaign.faults import Faults
from bench.campaign.kernels import compiled
from bench.campaign.process import Part, PartProcess
from bench.campaign.race import race
from bench.campaign.recipes import VARIANTS, get_recipe
from bench.campaign.schedule import Stage
from bench.campaign.summary import MOST_LINES, ratios_of, summary
from bench.campaign.timing import seconds_per_call
from bench.campaign.trainings import trainings
from bench.peers import PeerError
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.training import Trainer

ROOT = Path(__file__).resolve().parents[2]
FAULTS = "segv:kernels,hang:steps,nocapture:speedrun94"
FAILED = {"kernels", "steps:speedrun94", "steps:davidnet", "smoke:speedrun94", "trainings:speedrun94"}


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """The whole campaign with three faults, and then again, into the same folder, without: of each call the process,
    and the records that the folder then had. They find none of the packages that a machine without a network may
    lack."""
    out, absent = tmp_path_factory.mktemp("campaign"), tmp_path_factory.mktemp("absent")
    for name in ("tyro", "pooch", "pytest", "pytest_benchmark"):
        (absent / f"{name}.py").write_text(f"raise ImportError('{name} is absent')\n")
    environment = {**os.environ, "PYTHONPATH": str(absent), "TMPDIR": str(absent)}
    words = [sys.executable, "-m", "bench.campaign", "--device", "cpu", "--tiny", "--out", str(out)]
    found = []
    for faults, limits in ((FAULTS, ["--limits", "steps=2"]), ("", [])):
        done = subprocess.run(
            [*words, *limits],
            cwd=ROOT,
            env={**environment, "FASTCIFAR_FAULT": faults},
            capture_output=True,
            text=True,
        )
        records = {path.name: read_records(path) for path in out.glob("*.jsonl")}
        found.append((done, records))
    return found, out


def results(records):
    return [record for record in records if record["what"] not in ("done", "failed")]


def outcomes(records):
    """How each part ended when it last had its turn."""
    every = [record for kept in records.values() for record in kept if record["what"] in ("done", "failed")]
    return {record["part"]: record for record in every}


def test_each_of_three_faults_costs_its_own_parts_and_no_other(calls):
    (done, records), _ = calls[0]
    assert done.returncode == 0, done.stderr
    ended = outcomes(records)
    assert {part for part, outcome in ended.items() if outcome["what"] == "failed"} == FAILED
    assert ended["kernels"]["reason"] == "died by SIGSEGV"
    assert ended["steps:davidnet"]["reason"] == "took more than its 2 s and was ended"
    assert any("in strike" in line for line in ended["steps:davidnet"]["printed"]), "where it hung"
    assert "CaptureFailed: speedrun94: its capture counts as failed" in ended["trainings:speedrun94"]["reason"]
    assert records.get("steps.jsonl") and not results(records["steps.jsonl"])
    assert {record["recipe"] for record in results(records["trainings.jsonl"])} == {"davidnet"}
    assert [record["side"] for record in results(records["race.jsonl"])] == ["theirs", "ours"] * 3
    assert all(f"  {part}: failed, " in done.stdout for part in FAILED)


def test_a_later_call_goes_on_where_an_earlier_one_stopped(calls):
    (_, before), (done, after) = calls[0]
    assert done.returncode == 0, done.stderr
    assert [outcome for outcome in outcomes(after).values() if outcome["what"] == "failed"] == []
    for file in ("race.jsonl", "ceilings.jsonl"):
        assert results(after[file]) == results(before[file]), "what is known is not sought again"
    seeds = [(record["recipe"], record["seed"]) for record in results(after["trainings.jsonl"])]
    assert sorted(seeds) == [("davidnet", 0), ("davidnet", 1), ("speedrun94", 0), ("speedrun94", 1)]
    assert "failed" not in done.stdout


def test_the_whole_campaign_runs_on_a_cpu(calls):
    (_, (done, records)), out = calls
    assert set(records) == {f"{name}.jsonl" for name in ("smoke", "ceilings", "kernels", "steps", "trainings", "race")}
    assert len(list(out.iterdir())) <= 8, "as many come back from a lent machine"
    smoked = [record for record in results(records["smoke.jsonl"]) if record["what"] == "training"]
    assert [record["recipe"] for record in smoked].count("speedrun94") == 3
    assert {record["not_captured"] for record in smoked} == {"a CPU has no CUDA graphs"}
    table = done.stdout.partition("\n\n")[2].splitlines()
    assert len(table) <= MOST_LINES
    assert any("ours takes" in line and "with the final evaluation" in line for line in table)


def test_every_kernel_of_a_real_step_is_right_at_every_shape(calls):
    (_, (_, records)), _ = calls
    errors = [record for record in records["kernels.jsonl"] if record["what"] == "error"]
    assert max(record["worst"] for record in errors) < 0.02, "bfloat16 keeps 8 bits"
    places = {place.partition(" of ")[0] for record in errors for place in record["places"]}
    assert places == {f"{name}, {where}" for name in ("speedrun94", "davidnet") for where in ("stage 0", "evaluation")}
    timed = [record["variant"] for record in records["kernels.jsonl"] if record["what"] == "speed"]
    assert timed.count("kernel") == timed.count("reference") == len(errors)


@pytest.mark.parametrize(
    ("words", "fault", "refused"),
    [
        ("--out x --only env,kernels", "", "--only names env; allowed: smoke, kernels, "),
        ("--out x --limits steps=soon", "", "--limits has 'steps=soon'; allowed: PART=SECONDS"),
        ("--out x --limits step=3", "", "--limits names step; allowed: smoke, "),
        ("--out x --peers y --rivals airbench", "", "peer is 'airbench'; allowed: airbench94_muon, "),
        ("campaign --out x --peers y --rivals airbench95", "", "--peers: y/cifar10-airbench is no folder; allowed: "),
        ("smoke --out x --data-dir y", "", "data_dir y does not exist; looked for "),
        ("campaign --out x --rivals= --data-dir y", "", "data_dir y does not exist; looked for "),
        ("campaign --out x", "", "--peers is missing; allowed without it: --rivals ''"),
        ("smoke", "", "--out is missing; allowed without it: --tiny"),
        ("--tiny", "crash:kernels", "FASTCIFAR_FAULT has 'crash:kernels'; allowed: segv:PART, hang:PART"),
        ("--tiny", "segv:kernel", "FASTCIFAR_FAULT has 'segv:kernel'; allowed after segv: smoke, "),
        ("--tiny", "nocapture:steps", "FASTCIFAR_FAULT has 'nocapture:steps'; allowed after nocapture: speedrun94"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(words, fault, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench.campaign", *words.split()])
    monkeypatch.setenv("FASTCIFAR_FAULT", fault)
    with pytest.raises(UserError) as caught:
        command.main()
    assert str(caught.value).startswith(refused)
    assert list(tmp_path.iterdir()) == []


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


def test_rivals_compile_while_others_run_and_are_raced_in_turn_when_ready(campaign):
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

    parts = [Part(name, partial(part, seconds=0.6), "order", 0.1) for name in ("a", "b")]
    races = [
        Part("race", partial(compiling, seconds=seconds), "order", 1.0, rival)
        for rival, seconds in (("x", 0.1), ("y", 2.0))
    ]
    told = []
    Stage(campaign, 60.0, {}, told.append).run(parts, races)
    order = [(record["part"], record["what"]) for record in results(read_records(campaign.path("order")))]
    assert order == [
        ("a", "began"),
        ("race:x", "compiled"),
        ("a", "ended"),
        ("race:x", "raced"),
        ("b", "began"),
        ("b", "ended"),
        ("race:y", "compiled"),
        ("race:y", "raced"),
    ]
    assert [line.partition(":")[0] for line in told] == ["a", "race", "b", "race"]
    beside = {record["part"]: record.get("beside") for record in results(read_records(campaign.path("order")))}
    assert beside == {"a": "race:x", "b": "race:y", "race:x": None, "race:y": None}


def test_a_race_that_hangs_is_ended_and_what_has_no_time_left_is_left_out(campaign):
    def hanging(_):
        time.sleep(1000)
        yield {}

    told = []
    part = Part("part", lambda _: iter([{"what": "ran"}]), "part", 0.5)
    Stage(campaign, 5.0, {"part": 100.0}, told.append).run([part], [Part("race", hanging, "race", 1.0, "x")])
    assert told[0].startswith("race:x: 0 results in ") and told[0].endswith("and was ended")
    assert told[1] == "part: left out, the time is up"


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


class InTurn:
    """A worker without a process."""

    fails: str | None = None
    started = 0.0

    def __init__(self, peer, *_):
        self.peer, self.facts = peer, {"batch_size": 1}

    def run(self, steps, seed=0, timeout=None):
        if self.fails and self.fails in self.peer:
            raise PeerError("it does not compile", "Traceback: it does not compile")
        return {"captured": True, "time_seconds": 1.0, "train_seconds": 1.0}

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@pytest.fixture
def one_thread():
    """As in the parts of a tiny campaign."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny(campaign, monkeypatch, one_thread):
    monkeypatch.setattr("bench.peers.race.Worker", InTurn)
    return dataclasses.replace(campaign, device_name="cpu", tiny=True)


def raced(campaign, seconds):
    """The rounds of a race whose turn is `seconds` long, a warm-up's number in brackets."""

    def wait_for_turn():
        return dataclasses.replace(campaign, ends=time.monotonic() + seconds)

    rounds = []
    for record in race(dataclasses.replace(campaign, wait_for_turn=wait_for_turn), "tiny"):
        append_record(campaign.path("race"), record)
        rounds.append([record["round"]] if record["warm_up"] else record["round"])
    return rounds


def test_a_round_is_always_measured_and_a_later_call_goes_on_from_the_next(tiny):
    assert raced(tiny, seconds=-1) == [[0], [0], 1, 1]
    assert raced(tiny, seconds=60) == [[1], [1], 2, 2]
    assert raced(tiny, seconds=60) == []


def test_a_rival_that_fails_is_told(tiny, monkeypatch, capsys):
    monkeypatch.setattr(InTurn, "fails", "tiny")
    with pytest.raises(UserError, match="theirs: it does not compile"):
        list(race(tiny, "tiny"))
    assert capsys.readouterr().out == "Traceback: it does not compile\n"


def test_cold_starts_are_kept_or_told_and_not_sought_again(tiny, monkeypatch):
    monkeypatch.setattr(InTurn, "fails", "tiny")
    assert [record["what"] for record in cold(tiny)] == ["finding"]
    monkeypatch.setattr(InTurn, "fails", None)
    (record,) = cold(tiny)
    assert record["process_seconds"] > 0
    append_record(tiny.path("cold"), record)
    assert list(cold(tiny)) == []


def test_the_operations_written_down_by_hand_are_timed(tiny):
    records = list(compiled(tiny))
    assert {record["variant"] for record in records} == {"kernel"}, "nothing is compiled in a tiny one on a CPU"
    assert {record["operation"] for record in records} >= {"norm_act_pool", "augment", "cross_entropy", "flat_sgd"}
    assert all(record["seconds"] > 0 for record in records)


def test_a_training_without_its_capture_is_no_result(tiny, monkeypatch):
    failed = {"captured": False, "not_captured": "a kernel waits"}
    monkeypatch.setattr(Campaign, "device", torch.device("cuda"))
    require_capture(tiny, "davidnet", {"captured": True, "not_captured": None})
    with pytest.raises(CaptureFailed, match="davidnet: a kernel waits"):
        require_capture(tiny, "davidnet", failed)
    monkeypatch.setattr(Campaign, "device", torch.device("cpu"))
    require_capture(tiny, "davidnet", failed)
    with pytest.raises(CaptureFailed):
        list(trainings(dataclasses.replace(tiny, faults=Faults(nocapture=frozenset(["davidnet"]))), "davidnet"))


def test_waiting_is_an_error_from_the_first_step_of_an_epoch_to_its_last(one_thread, monkeypatch):
    modes, trainer = [], Trainer(get_recipe("davidnet", tiny=True), make_synthetic(128, 32), "cpu")
    monkeypatch.setattr(smoke, "_set_waiting", lambda _, mode: modes.append(mode))
    average = trainer.timeline.is_averaged
    monkeypatch.setattr(trainer.timeline, "is_averaged", lambda step: modes.append(step) or average(step))
    run = smoke._run_strictly(trainer, 0)
    assert modes == ["error", 1, 2, 3, 4, "default"]
    assert run.seed == 0


def test_a_host_that_waits_is_a_finding_and_the_training_is_run_again(tiny, monkeypatch):
    def waits(trainer, seed):
        raise RuntimeError("called a synchronizing CUDA operation")

    monkeypatch.setattr(smoke, "_run_strictly", waits)
    records = list(smoke.smoke(tiny, "speedrun94"))
    assert [record["what"] for record in records] == ["images", "training", "finding", "training", "training"]
    assert "called a synchronizing CUDA operation" in records[2]["found"]


def test_every_recipe_can_be_made():
    for name in VARIANTS:
        assert get_recipe(name, tiny=False).name == name
        assert get_recipe(name, tiny=True).batch_size == 32
    small, large = get_recipe("speedrun94", tiny=False), get_recipe("speedrun94-1024", tiny=False)
    assert (large.batch_size, large.optim.head_lr) == (1024, 2 * small.optim.head_lr)


def test_the_smoke_reads_a_part_of_the_data_in_either_form(tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    monkeypatch.setattr(images, "FIRST", 30)
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
        read, read_labels = images.read_first(folder)
        assert np.array_equal(read, pixels) and np.array_equal(read_labels, labels[:30])
    assert images.read_first(tmp_path) is images.read_first(None) is None
    (batches / "data_batch_2.bin").write_bytes(b"half")
    with pytest.raises(UserError, match="cannot read the first 30 images in"):
        images.read_first(batches)


def test_the_smoke_trains_on_the_first_images_alone(campaign, monkeypatch):
    monkeypatch.setattr(images, "FIRST", 30)
    monkeypatch.setattr(images, "HELD", 5)
    read = np.arange(30 * 3072, dtype=np.uint64).astype(np.uint8).reshape(30, 32, 32, 3), np.arange(30) % 10
    found = images.smoke_dataset(dataclasses.replace(campaign, device_name="cpu", first_images=read))
    assert (len(found.train), len(found.test), found.holdout) == (25, 5, 5)
    assert torch.equal(found.test.images, torch.from_numpy(read[0][25:]))


def test_both_clocks_are_compared_round_by_round_and_none_where_it_is_not_known():
    def run(number, train, whole):
        return {"round": number, "train_seconds": train, "time_seconds": whole}

    sides = {"theirs": [run(1, 2.0, None), run(2, 4.0, None)], "ours": [run(2, 1.0, 2.0), run(1, 1.0, 2.0)]}
    assert ratios_of(sides, "train_seconds") == [0.5, 0.25]
    assert ratios_of(sides, "time_seconds") == []


def test_the_summary_of_many_results_is_cut_and_says_so(tmp_path):
    for number in range(100):
        append_record(tmp_path / "cold.jsonl", {"what": "cold", "program": f"p{number}", "process_seconds": 1.0})
    lines = summary(tmp_path)
    assert len(lines) == MOST_LINES
    assert lines[-1] == "... and 42 lines more in the files"


def test_the_time_of_a_call_is_that_of_one_in_a_row():
    calls = []
    seconds = seconds_per_call(lambda: calls.append(1), torch.device("cpu"), calls=10, repeats=3)
    assert len(calls) == 2 + 3 * 10
    assert 0 < seconds < 1


def test_results_are_one_json_object_a_line(calls):
    _, out = calls
    for path in out.glob("*.jsonl"):
        assert all(isinstance(json.loads(line), dict) for line in path.read_text().splitlines())
