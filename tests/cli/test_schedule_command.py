"""`parallel-dl schedule`: the grid, the JSON object, checks of files, and what it refuses; without MPI and NumPy."""

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import HANG, ROOT

from parallel_dl.cli import main
from parallel_dl.cli.schedule import _STYLES
from parallel_dl.schedule import SCHEDULES, make, with_messages, write
from parallel_dl.schedule.actions import COMPUTE

KEYS = [
    *("name", "pp", "microbatches", "makespan", "idle_fraction", "bubble_overhead", "peak_live"),
    *("latency", "throughput", "concurrency", "overlap", "deadlock", "programs"),
]
DEADLOCK = [
    {"rank": 0, "action": "0SF1", "waits_for": 1},
    {"rank": 1, "action": "1SB0", "waits_for": 0},
]


def schedule(capfd, *arguments, status=0):
    """(stdout, stderr) of the command."""
    assert main(["schedule", *map(str, arguments)]) == status
    return capfd.readouterr()


def as_json(capfd, *arguments, status=0):
    out, err = schedule(capfd, *arguments, "--json", status=status)
    assert out.count("\n") == 1
    assert (err == "") == (status == 0)
    return json.loads(out, parse_constant=pytest.fail)


def of(name, pp, microbatches, *more):
    return [name, "--pp", pp, "--microbatches", microbatches, *more]


@pytest.fixture
def plan_file(tmp_path):
    """plan_file(text) -> the path of a file with it."""

    def make_file(text):
        path = tmp_path / "plan.txt"
        path.write_text(text)
        return path

    return make_file


@pytest.mark.parametrize("name", SCHEDULES)
def test_json(name, capfd):
    found = as_json(capfd, *of(name, 4, 8))
    assert list(found) == KEYS
    assert (found["name"], found["pp"], found["microbatches"]) == (name, 4, 8)
    assert found["deadlock"] == {"buffered": None, "rendezvous": None}
    assert found["programs"] == with_messages(make(name, 4, 8)).lines()
    assert len(found["peak_live"]) == 4
    assert found["concurrency"] == pytest.approx(4 * (1 - found["idle_fraction"]))
    if name in ("1f1b", "gpipe"):
        assert found["makespan"] == 33
        assert found["idle_fraction"] == pytest.approx(3 / 11, rel=1e-12)
        assert found["bubble_overhead"] == pytest.approx(3 / 8, rel=1e-12)
        assert found["throughput"] == pytest.approx(8 / 33)
    if name == "1f1b":
        assert found["peak_live"] == [4, 3, 2, 1]
    assert (found["overlap"] == 0) == (name in ("naive", "gpipe"))


def test_flags_reach_the_simulator(capfd):
    times = ("--forward", "1,2,1", "--backward-input", 2, "--backward-weight", 0.5)
    wire = ("--latency", 0.25, "--bytes", 100, "--bytes-per-second", 200)
    found = as_json(capfd, *of("naive", 3, 2, *times, *wire))
    assert found["latency"] == 4 + 2 * (0.25 + 0.5)
    assert found["makespan"] == 2 * (4 + 3 * 2.5 + 4 * 0.75)
    assert as_json(capfd, *of("naive", 3, 2, *times, *wire, "--eager-limit", 100)) == found
    assert as_json(capfd, *of("naive", 3, 2, *times, *wire, "--eager-limit", 99))["latency"] == 4 + 2 * (0.75 + 0.5)
    interleaved = as_json(capfd, *of("interleaved", 2, 4, "--chunks", 3))
    assert interleaved["programs"] == with_messages(make("interleaved", 2, 4, 3)).lines()


@pytest.mark.parametrize(("rate", "throughput", "growth"), [(0.1, 0.1, "0"), (0.5, 1 / 3, "0.166667")])
def test_a_stream(rate, throughput, growth, capfd):
    arguments = of("pipedream", 3, 100, "--input-rate", rate)
    found = as_json(capfd, *arguments)
    assert list(found) == KEYS
    assert found["throughput"] == pytest.approx(throughput)
    out, _ = schedule(capfd, *arguments)
    assert f"the queue grows by {growth}\n" in out


def test_a_stream_without_steady_state(capfd):
    arguments = of("gpipe", 3, 100, "--input-rate", 0.1)
    assert as_json(capfd, *arguments)["throughput"] is None
    assert "steady state     none" in schedule(capfd, *arguments).out


def test_blocking_sends_deadlock(capfd):
    arguments = of("1f1b", 2, 2, "--blocking")
    found = as_json(capfd, *arguments)
    assert found["deadlock"] == {"buffered": None, "rendezvous": DEADLOCK}
    assert found["makespan"] == 9  # with buffered sends
    assert as_json(capfd, *of("1f1b", 2, 2))["deadlock"]["rendezvous"] is None
    assert "rank 0 at 0SF1 waits for rank 1, rank 1 at 1SB0 waits for rank 0" in schedule(capfd, *arguments).out
    stopped = as_json(capfd, *arguments, "--bytes", 9, "--eager-limit", 8)
    of_time = ("makespan", "idle_fraction", "bubble_overhead", "latency", "throughput", "concurrency", "overlap")
    assert all(stopped[key] is None for key in of_time)
    assert stopped["peak_live"] == [2, 1]
    out, _ = schedule(capfd, *arguments, "--bytes", 9, "--eager-limit", 8)
    assert "Deadlock with rendezvous sends" in out


def test_what_is_not_finite_is_null(capfd):
    found = as_json(capfd, *of("gpipe", 2, 2, "--forward", 0, "--backward-input", 0, "--backward-weight", 0))
    assert found["makespan"] == found["latency"] == 0
    assert found["throughput"] is found["idle_fraction"] is found["bubble_overhead"] is None
    assert found["concurrency"] is found["overlap"] is None


def test_the_grid_is_plain_text_when_piped(capfd):
    out, _ = schedule(capfd, *of("1f1b", 2, 2))
    assert "rank 0  F0 F1 ......B0--- ...B1---" in out
    assert "rank 1  ...F0 B0--- F1 B1--- ......" in out
    assert "\x1b" not in out
    assert re.search(r"^ +1 +6 +3 +33.3% +1 *$", out, re.MULTILINE)  # rank, busy, idle, share, peak live
    assert "makespan         9\n" in out
    assert "idle             33.3% of the step, 50.0% of the work\n" in out
    assert "overlap          11.1% of the step" in out
    assert "critical path    0F0 1F0 1B0 1F1 1B1 0B1 (6 actions)\n" in out
    assert set(_STYLES) == {*COMPUTE, ""}


def test_the_grid_has_colours_in_a_terminal(capfd, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    out, _ = schedule(capfd, *of("1f1b", 4, 16))
    lines = [line for line in out.splitlines() if line.startswith("rank ")]
    assert len(lines) == 4
    assert all("\x1b[" in line for line in lines)
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]
    assert {len(line) for line in plain} == {60}


def test_many_ranks_are_cut(capfd):
    out, _ = schedule(capfd, *of("gpipe", 100, 1))
    assert "... and 36 more ranks" in out


# -- files -----------------------------------------------------------------------------------------------------
def test_a_right_file(capfd, plan_file):
    path = plan_file(write(make("1f1b", 2, 3)))
    out, _ = schedule(capfd, "--check", path)
    assert out.startswith(f"{path}: correct (2 ranks, 2 stages, 3 microbatches, 24 actions)\n")
    assert out.endswith("No deadlock with sends that do not block.\n")
    found = as_json(capfd, "--check", path)
    assert list(found) == KEYS
    assert (found["name"], found["makespan"]) == (str(path), 12)
    assert found["programs"] == with_messages(make("1f1b", 2, 3)).lines()


def test_pytorchs_csv(capfd):
    path = ROOT / "tests" / "schedule" / "golden" / "pytorch-interleaved-4x8-messages.csv"
    out, _ = schedule(capfd, "--check", path)
    assert "correct (4 ranks, 8 stages, 8 microbatches" in out
    assert out.endswith("No deadlock with buffered or rendezvous sends.\n")


def test_a_file_that_deadlocks(capfd, plan_file):
    """Sends that are written out block, unless --nonblocking says no; those that are added only with --blocking."""
    circle = "rank 0 at 0SF1 waits for rank 1, rank 1 at 1SB0 waits for rank 0"
    path = plan_file(write(with_messages(make("1f1b", 2, 2))))
    out, err = schedule(capfd, "--check", path, status=2)
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"parallel-dl: {path}: deadlock if sends wait for their receive: {circle}")
    assert as_json(capfd, "--check", path, "--nonblocking")["deadlock"]["rendezvous"] is None
    path = plan_file(write(make("1f1b", 2, 2)))
    schedule(capfd, "--check", path)
    assert circle in schedule(capfd, "--check", path, "--blocking", status=2).err
    main(["schedule", "--check", str(path), "--blocking", "--json"])
    out, err = capfd.readouterr()
    assert json.loads(out)["deadlock"] == {"buffered": None, "rendezvous": DEADLOCK}
    assert circle in err


def test_a_file_that_deadlocks_whatever_sends_do(capfd, plan_file):
    path = plan_file("0F0 0SF0 0RB0 0B0 0F1 0SF1 0RB1 0B1\n1RF0 1F0 1RF1 1F1 1B0 1SB0 1B1 1SB1")
    for more in ((), ("--nonblocking",)):
        err = schedule(capfd, "--check", path, *more, status=2).err
        assert err == (
            f"parallel-dl: {path}: deadlock: rank 0 at 0RB0 waits for rank 1, rank 1 at 1RF1 waits for rank 0\n"
        )
    found = as_json(capfd, "--check", path, "--nonblocking", status=2)
    assert found["makespan"] is None
    assert found["deadlock"]["buffered"] == [
        {"rank": 0, "action": "0RB0", "waits_for": 1},
        {"rank": 1, "action": "1RF1", "waits_for": 0},
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0F0 0SF0 0RB0 0B0\n1F0 1B0 1SB0", "rank 1, action 0: 1F0 needs 1RF0, which rank 1 never does"),
        ("0B0 0F0", "rank 0, action 0: 0B0 comes before 0F0"),
        ("0F0 0B0\nnonsense", "rank 1: 'nonsense' is not an action"),
        ("", "has no line with actions"),
    ],
)
def test_a_file_with_a_fault(text, said, capfd, plan_file):
    path = plan_file(text)
    for more in ((), ("--json",)):
        out, err = schedule(capfd, "--check", path, *more, status=2)
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith(f"parallel-dl: {path}")
        assert said in err


BAD = [
    (of("gpip", 2, 2), "unknown schedule 'gpip': did you mean 'gpipe'?"),
    (of("gpipe", 0, 2), "--pp 0: must be at least 1"),
    (of("gpipe", 2, 0), "--microbatches 0: must be at least 1"),
    (of("gpipe", 2, "two"), "--microbatches"),
    (of("interleaved", 4, 6), "--microbatches 6: interleaved takes multiples of --pp, here 4, 8, 12 and so on"),
    (of("gpipe", 2, 2, "--chunks", 2), "--chunks 2: applies only to interleaved"),
    (of("interleaved", 2, 2, "--chunks", 0), "--chunks 0: must be at least 1"),
    (["gpipe", "--microbatches", 2], "--pp is missing"),
    (["gpipe", "--pp", 2], "--microbatches is missing"),
    (["--pp", 2, "--microbatches", 2], "NAME is missing: expected one of naive, gpipe, 1f1b"),
    ([], "NAME is missing"),
    (of("gpipe", 2, 2, "--check", "file"), "NAME gpipe: not with --check"),
    (["--check", "file", "--pp", 2], "--pp 2: not with --check"),
    (["--check", "/no/such/file"], "/no/such/file: no such file"),
    (["--check", "/tmp"], "/tmp: is a folder"),
    (of("gpipe", 2, 2, "--blocking", "--nonblocking"), "only one of them"),
    (of("gpipe", 2, 2, "--forward", "fast"), "--forward fast: expected a number, or one per stage"),
    (of("gpipe", 2, 2, "--forward=-1"), "--forward -1: must be finite and at least 0"),
    (of("gpipe", 2, 2, "--backward-input", "1,nan"), "--backward-input 1,nan: must be finite"),
    (
        of("gpipe", 3, 2, "--backward-weight", "1,1"),
        "--backward-weight 1,1: has 2 times; expected one, or 3, one per stage",
    ),
    (of("gpipe", 2, 2, "--latency", -1), "--latency -1.0: must be a finite number, at least 0"),
    (of("gpipe", 2, 2, "--bytes", "inf"), "--bytes inf: must be a finite number, at least 0"),
    (of("gpipe", 2, 2, "--bytes-per-second", 0), "--bytes-per-second 0.0: must be a finite number above 0"),
    (of("gpipe", 2, 2, "--bytes", 0), "--bytes 0: needs --bytes-per-second or --eager-limit"),
    (of("gpipe", 2, 2, "--bytes-per-second", 2), "--bytes-per-second 2: needs --bytes"),
    (of("gpipe", 2, 2, "--eager-limit", 3), "--eager-limit 3: needs --bytes"),
    (of("gpipe", 2, 2, "--eager-limit", "nan"), "--eager-limit nan: must be a finite number"),
    (of("gpipe", 2, 2, "--input-rate", 0), "--input-rate 0.0: must be a finite number above 0"),
    (of("gpipe", 9999, 9999), "at most 100,000 forward passes"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD, ids=[said for _, said in BAD])
def test_bad_input_is_one_line_and_status_2(arguments, said, capfd):
    out, err = schedule(capfd, *arguments, status=2)
    assert out == ""
    assert err.startswith("parallel-dl: ")
    assert err.count("\n") == 1
    assert said in err


def test_it_needs_neither_mpi_nor_numpy(tmp_path, plan_file):
    """Both cannot be imported; and the command as a user calls it."""
    for name in ("numpy", "mpi4py"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('not here')")
    for arguments in (of("zb-h1", 2, 2), ["--check", plan_file("0F0 0B0")]):
        run = subprocess.run(
            [sys.executable, "-m", "parallel_dl", "schedule", *map(str, arguments), "--json"],
            env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
            capture_output=True,
            text=True,
            timeout=HANG,
            check=False,
        )
        assert (run.returncode, run.stderr) == (0, "")
        assert list(json.loads(run.stdout)) == KEYS
