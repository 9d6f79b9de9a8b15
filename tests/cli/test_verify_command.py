"""`parallel-dl verify`: what it prints, its JSON and exit status, and what it refuses."""

import json
import re
import sys
from importlib import import_module

import pytest
import typer
from test_commands import call, mpirun

from parallel_dl import launch
from parallel_dl.cli import main
from parallel_dl.cli.main import app
from parallel_dl.cli.verify_report import report


def verify(*arguments, status=0, **options):
    code, out, err = call("verify", *arguments, "--json", **options)
    assert code == status, err
    return json.loads(out, parse_constant=pytest.fail)


def test_the_json_object():
    found = verify("mlp", "--mp", 2, "--steps", 2)
    assert set(found) == {"equal", "cells", "noise_floor"}
    (cell,) = found["cells"]
    assert set(cell) == {"network", "layout", "ranks", "equal", "worst", "seconds", "noise", "divergence", "note"}
    assert (cell["network"], cell["ranks"], cell["equal"], cell["divergence"]) == ("mlp", 2, True, None)
    assert cell["layout"] == {"dp": 1, "mp": 2, "pp": 1, "schedule": None, "microbatches": 1, "split": {}}
    assert set(cell["worst"]) == {"quantity", "step", "error", "bound"}
    assert 0 < cell["worst"]["error"] < 1e-12 < cell["worst"]["bound"] == 1e-10
    assert 0 < cell["noise"] == found["noise_floor"] < 1e-12


@pytest.mark.parametrize(
    ("flags", "left_out"),
    [
        (("--optimizer", "lars", "--clip-norm", 0.1), {"pipedream"}),
        pytest.param(("--clip-norm", 0.1), {"pipedream"}, marks=pytest.mark.grid),
        pytest.param(("--optimizer", "lars"), set(), marks=pytest.mark.grid),
    ],
)
def test_layouts_without_a_norm_are_left_out(flags, left_out):
    found = verify("mlp", "--ranks", 2, "--steps", 1, *flags)
    schedules = {cell["layout"]["schedule"] for cell in found["cells"]} - {None}
    assert found["equal"]
    assert schedules == {"naive", "gpipe", "1f1b", "zb-h1", "pipedream"} - left_out


@pytest.mark.grid
def test_every_layout_of_two_ranks():
    """Also bit by bit; a pipeline alone is equal to the last bit in any case."""
    cells = verify("lenet5_small", "--ranks", 2, "--steps", 1)["cells"]
    other = [cell["layout"]["split"] for cell in cells if cell["layout"]["split"]]
    assert {"features": "rows"} in other
    assert {"conv1": "filters", "conv2": "rows"} in other
    cells = [cell for cell in cells if not cell["layout"]["split"]]
    schedules = ["naive", "gpipe", "1f1b", "interleaved", "zb-h1", "pipedream"]
    assert [cell["layout"]["schedule"] for cell in cells[2:8]] == schedules
    hybrids = [cell["layout"]["hybrid"] for cell in cells[8:13]]
    assert [hybrid["scheme"] for hybrid in hybrids] == ["a", "b", "c", "b", "c"]
    assert [hybrid["variable_batch"] for hybrid in hybrids] == [False] * 3 + [True] * 2
    assert len(cells) == 13
    assert all(cell["worst"]["error"] == 0 for cell in cells[2:8])
    exact = verify("mlp", "--ranks", 2, "--exact")
    assert all(cell["worst"]["error"] == cell["worst"]["bound"] == 0 for cell in exact["cells"])
    assert exact["noise_floor"] is None


@pytest.mark.parametrize("flags", [("--mutant", "sign of an adjoint"), pytest.param((), marks=pytest.mark.grid)])
def test_mutants(flags):
    """tests/equivalence/test_mutants.py tests that each of them is caught, and what is said about it."""
    found = verify(*(flags or ["--mutants"]))
    assert set(found) == {"mutants", "noise_floor", "smallest_mutant", "distance"}
    assert len(found["mutants"]) == 1 if flags else len(found["mutants"]) >= 20
    assert all(mutant["caught"] and mutant["named"] for mutant in found["mutants"])
    assert set(found["mutants"][0]) == {"name", "caught", "named", "diagnosis", "error"}
    assert found["distance"] >= 1e4


@pytest.mark.grid
def test_a_reproducible_layout_and_bounds_of_float32():
    """It equals the ordinary serial run, to rounding. In float32 ordinary layouts are not called different."""
    (cell,) = verify("mlp", "--dp", 2, "--reproducible")["cells"]
    assert cell["equal"]
    assert cell["layout"]["reproducible"] is True
    assert 0 < cell["worst"]["error"] < 1e-11
    assert verify("vgg_small", "--dp", 2, "--seed", 1, "--dtype", "float32")["equal"]


def test_for_people_inside_a_users_own_mpirun():
    status, out, err = call("verify", "vgg_small", "--pp", 2, "--batch-size", 5, "--steps", 2, command=mpirun(2))
    assert status == 0, err
    assert "1 of 1 equal to the serial run, within 1e-10 of the magnitudes that were added" in out
    assert "noise floor" in out
    status, _, err = call("verify", "mlp", "--dp", 2, command=mpirun(3))
    assert status == 2
    assert err.count("needs 2 ranks, but mpirun started 3") == 1


def test_real_data_and_one_rank():
    flags = ("--schedule", "gpipe", "--microbatches", 3, "--optimizer", "adam", "--dtype", "float32")
    (cell,) = verify("mlp_deep", "--dataset", "digits", *flags)["cells"]
    assert (cell["ranks"], cell["worst"]["error"]) == (1, 0)
    assert cell["worst"]["bound"] == 1e-5


@pytest.mark.grid
def test_all():
    found = verify("--all", seconds=3600)  # two minutes and more on two idle cores
    assert found["equal"]
    assert len(found["cells"]) > 400
    assert found["distance"] >= 1e4


def test_under_stress():
    """A race, caught and named; and a right layout, which is equal."""
    found = verify("--stress", "--mutant", "race: window without its second barrier", "--seed", 4)
    assert found["stress"] == 4
    assert found["mutants"][0]["caught"]
    assert "before it was complete" in found["mutants"][0]["diagnosis"]


def test_the_bugs_of_all_are_planted_under_stress_too(monkeypatch):
    from parallel_dl.cli import verify as command

    given = []
    monkeypatch.setattr(command, "_start", lambda job, ranks, arguments: given.append([*arguments]) or {"cells": []})
    flags = ["--stress", "--seed", "3", "--time-limit", "7"]
    assert main(["verify", "--all", *flags]) == 0
    assert given[-1] == ["verify", "--mutants", "--time-limit", "7.0", "--stress", "--seed", "3"]
    assert all(arguments == ["verify", "--all", *flags] for arguments in given[:-1])


HANGS = """
import sys
from parallel_dl.cli import main
from parallel_dl.mpi import Communicator

right = Communicator.all_gather

def wrong(comm, array, axis=0, sizes=None):
    if comm.rank == 1 and comm.name == "model":
        return comm.reduce_scatter(array, axis)
    return right(comm, array, axis, sizes)

Communicator.all_gather = wrong
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("ours", [True, pytest.param(False, marks=pytest.mark.grid)], ids=["launcher", "mpirun"])
def test_a_hang_is_named(tmp_path, environment, ours):
    """One line names network, layout, and in which call each rank waits; under one's own mpirun it is a line a rank."""
    environment.setenv("PARALLEL_DL_CHECKED", "0")  # else it ends before the limit
    environment.setenv("PARALLEL_DL_WATCHDOG", "0")
    (tmp_path / "program.py").write_text(HANGS)
    flags = ("verify", "mlp", "--mp", 2, "--time-limit", 5)
    if ours:
        status, _, err = call("run", tmp_path / "program.py", *flags)
        assert err.count("\n") == 1
    else:
        command = [*mpirun(2)[:3], sys.executable, tmp_path / "program.py"]
        status, _, err = call(*flags, command=command)
    assert status == 1
    assert "parallel-dl: mlp, mp 2, 1 microbatch: took more than 5 s: rank " in err
    assert "rank 0 waits in all_gather(array=float64 (64,), axis=0, sizes=(64, 64)) on 'model', called from " in err
    assert "rank 1 waits in reduce_scatter(array=float64 (64,), axis=0, sizes=[32, 32]) on 'model'" in err


def test_a_rank_alone_has_a_time_limit_too():
    status, out, err = call("verify", "mlp", "--microbatches", 2, "--schedule", "gpipe", "--time-limit", 1e-3)
    assert (status, out) == (1, "")
    assert err.startswith("parallel-dl: mlp, serial gpipe, 2 microbatches: took more than 0.001 s: rank 0 ")
    assert err.count("\n") == 1


FAILS = """
import sys
from importlib import import_module
from parallel_dl.cli import main

verify = import_module("parallel_dl.equivalence.verify")
right = verify.verify_one

def fails_once(name, experiment, layout, mesh, *others):
    if layout.schedule == "gpipe" and mesh.world.rank == 1:
        raise ZeroDivisionError("by design")
    return right(name, experiment, layout, mesh, *others)

verify.verify_one = fails_once
sys.exit(main(sys.argv[1:]))
"""


def test_a_layout_that_ends_with_an_error_is_one_of_many(tmp_path, monkeypatch, capfd):
    """On one rank, for which the other waits: the layouts before it are not lost, and those after it are verified."""
    program, right = tmp_path / "program.py", launch.run
    program.write_text(FAILS)
    monkeypatch.setattr(
        launch, "run", lambda ranks, ours, *others: right(ranks, [str(program), *ours[2:]], *others), raising=False
    )
    assert main(["verify", "mlp", "--ranks", "2", "--steps", "1", "--json"]) == 1
    out, err = capfd.readouterr()
    found = json.loads(out)
    wrong = [cell for cell in found["cells"] if not cell["equal"]]
    assert [cell["layout"]["schedule"] for cell in wrong] == ["gpipe"]
    assert wrong[0]["worst"]["quantity"] == "the run, which ends on rank 1 with ZeroDivisionError: by design,"
    schedules = [cell["layout"]["schedule"] for cell in found["cells"] if cell["layout"]["pp"] == 2]
    assert schedules == ["naive", "gpipe", "1f1b", "zb-h1", "pipedream"]
    assert "mlp, Layout(microbatches=4, pp=2, schedule='gpipe'): ZeroDivisionError: by design" in err


WRONG_RULE = """
import math
from parallel_dl import nn, splits

class Same(nn.Linear):
    pass

@splits.rule(Same, "output")
def by_output(site):
    wrong = lambda layer, x, position: layer.forward(x).reshape((len(x), -1, 1))
    placed = site.weights(splits.Shard(0), "weight", "bias")
    return splits.Division(site.on(splits.Shard(1)), site.on(splits.Replicated()), placed, local=wrong)

def Net(input_shape, classes):
    return nn.Sequential(flat=nn.Flatten(), same=Same(math.prod(input_shape), 8), fc=nn.Linear(8, classes))
"""


def test_a_rule_that_is_wrong_on_the_ranks_is_a_line(tmp_path, capfd):
    """As bad input is: without a traceback."""
    (tmp_path / "wrong.py").write_text(WRONG_RULE)
    net = f"{tmp_path / 'wrong.py'}:Net"
    said = f"layer same: rule by_output ({tmp_path / 'wrong.py'}, line 8): rank "
    with pytest.raises(SystemExit, match="2"):
        main(["verify", net, "--mp", "2", "--split", "same=output", "--steps", "1"])
    out, err = capfd.readouterr()
    assert out == ""
    assert all(
        line.startswith(f"parallel-dl: {net}, mp 2 same=output, 1 microbatch: {said}") for line in err.splitlines()
    ), err


def test_a_rank_alone_goes_on_after_an_error(monkeypatch, capsys):
    module = import_module("parallel_dl.equivalence.verify")
    right = module.verify_one

    def fails_once(name, experiment, layout, *others):
        if layout.hybrid and layout.scheme == "b":
            raise ZeroDivisionError("by design")
        return right(name, experiment, layout, *others)

    monkeypatch.setattr(module, "verify_one", fails_once)
    assert main(["verify", "lenet5_small", "--ranks", "1", "--steps", "1"]) == 1
    out = capsys.readouterr().out
    assert (
        "lenet5_small, owt b 1, 1 microbatch: DIFFERENT; worst is the run, which ends on rank 0 with ZeroDivisionError"
        in out
    )
    assert "3 of 4 equal to the serial run" in out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("mlp", "--dp", "2", "--time-limit", "0"), "--time-limit 0: must be above 0 and at most 1e+07"),
        (("mlp", "--dp", "2", "--time-limit", "nan"), "--time-limit nan: must be above 0"),
        (("mlp", "--microbatches", "2", "--schedule", "gpipe", "--stress"), "--stress: one rank waits for nobody"),
        (("mlp", "--ranks", "1", "--stress"), "--stress: one rank waits for nobody"),
        (("--mutant", "race: halo rows not waited for"), "is reliably caught only with --stress"),
        (("--mutant", "race: halo row not waited for", "--stress"), "did you mean 'race: halo rows not waited for'?"),
        ((), "NETWORK is missing: give one, or --all or --mutants"),
        (("mpl",), "unknown network 'mpl'"),
        (("mlp", "--all"), "NETWORK 'mlp': cannot be combined with --all"),
        (("mlp", "--all", "--reproducible"), "NETWORK 'mlp': cannot be combined with --all"),
        (("--all", "--reproducible"), "--reproducible: cannot be combined with --all"),
        (("mlp", "--ranks", "2", "--reproducible"), "--reproducible: cannot be combined with --ranks"),
        (("mlp", "--ranks", "2", "--dp", "0"), "--dp: cannot be combined with --ranks"),
        (("mlp", "--dp", "2", "--data-dir", "x"), "--data-dir x: needs --dataset"),
        (("mlp", "--dp", "2", "--exact", "--data-dir", "x"), "--data-dir x: needs --dataset"),
        (("--mutants", "--mutant", "sign of an adjoint"), "--mutant: cannot be combined with --mutants"),
        (("mlp", "--stress", "5"), "unexpected argument '5': --stress takes no value"),
        (("mlp", "mlp_deep", "--stress"), "unexpected argument 'mlp_deep'"),
        (
            ("mlp_deep", "--pp", "2", "--schedule", "pipedream", "--clip-norm", "1"),
            "--clip-norm 1.0: pipedream",
        ),
        (("--mutants", "--all"), "--mutants: cannot be combined with --all"),
        (("--mutant", "sign of an adjoint", "--all"), "--mutant: cannot be combined with --all"),
        (("mlp", "--mutant", "sign of an adjoint"), "NETWORK 'mlp': cannot be combined with --mutant"),
        (("--mutant", "sign of the adjoint"), "did you mean 'sign of an adjoint'?"),
        (("--mutant", ""), "unknown --mutant ''"),
        (("mlp", "--ranks", "4", "--dp", "2"), "--dp: cannot be combined with --ranks"),
        (("mlp", "--ranks", "0"), "--ranks 0: must be at least 1"),
        (("mlp", "--dp", "0"), "--dp 0: must be at least 1"),
        (("mlp", "--steps", "0"), "--steps 0: must be at least 1"),
        (("mlp", "--batch-size", "0"), "--batch-size 0: must be at least 1"),
        (("mlp", "--seed", "-1"), "--seed -1"),
        (("mlp", "--optimizer", "sdg"), "did you mean 'sgd'?"),
        (("mlp", "--dtype", "float16"), "did you mean 'float"),
        (("mlp", "--exact", "--dtype", "float32"), "--exact --dtype float32"),
        (("mlp", "--exact", "--batch-size", "12"), "--batch-size 12"),
        (("lenet5_small", "--exact"), "(Tanh) rounds"),
        (("mlp", "--pp", "2", "--schedule", "pipedream", "--exact"), "this layout is compared with weight stashing"),
        (("residul", "--dp", "2"), "did you mean 'residual'?"),
        (("mlp", "--ranks", "2", "--variable-batch"), "--variable-batch"),
        (
            ("residual", "--hybrid", "owt", "--ranks", "2", "--scheme", "b", "--variable-batch"),
            "cannot be compared for networks with batch norm",
        ),
        (("mlp", "--pp", "9"), "--pp 9: the network has 3 layers with weights; expected 1 to 3"),
        (("mlp", "--mp", "2", "--split", "fc9=output"), "--split fc9=output"),
        (("mlp", "--hybrid", "owt", "--ranks", "2"), "no convolution"),
        (("mlp", "--scheme", "b"), "needs --hybrid"),
        (("mlp",), "a layout of one rank is the serial run itself"),
        (("mlp", "--dp", "2", "--exact", "--steps", "3"), "--steps 3: cannot be combined with --exact"),
        (("mlp", "--dp", "2", "--exact", "--optimizer", "adam"), "--optimizer adam: cannot be combined with --exact"),
        (("mlp", "--dp", "2", "--exact", "--clip-norm", "1"), "--clip-norm 1.0: cannot be combined with --exact"),
    ],
)
def test_bad_input(capsys, flags, words):
    assert main(["verify", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("parallel-dl: ")
    assert err.count("\n") == 1
    assert words in err, err


# each with its default value, if it has one
UNUSED = [
    *(("--steps", "5"), ("--dtype", "float64"), ("--batch-size", "13"), ("--optimizer", "sgd"), ("--clip-norm", "1")),
    *(("--seed", "0"), ("--reproducible",), ("--dataset", "digits"), ("--data-dir", "x"), ("--microbatches", "4")),
    *(("--exact",), ("--layout", "x"), ("--dp", "1"), ("--mp", "1"), ("--pp", "1"), ("--split", "fc1=output")),
    *(("--schedule", "1f1b"), ("--stage", "fc2"), ("--chunks", "2"), ("--hybrid", "owt"), ("--scheme", "a")),
    *(("--variable-batch",), ("--ranks", "2"), ("--loss", "mse")),
]


@pytest.mark.parametrize("planted", [("--mutants",), ("--mutant", "sign of an adjoint")], ids=["all", "one"])
@pytest.mark.parametrize("flags", UNUSED, ids=lambda flags: flags[0])
def test_what_planted_bugs_do_not_use_is_refused(capsys, planted, flags):
    assert main(["verify", *planted, *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"parallel-dl: {flags[0]}: cannot be combined with {planted[0]}")
    assert err.count("\n") == 1


def test_every_option_is_used_by_planted_bugs_or_refused():
    used = {"--help", "--json", "--to-launcher", "--stress", "--checked", "--time-limit"}
    used |= {"--mutants", "--mutant", "--all"}
    command = typer.main.get_command(app).commands["verify"]
    options = {parameter.opts[0] for parameter in command.params if parameter.param_type_name == "option"}
    assert options - used == {flags[0] for flags in UNUSED}


def test_the_distance_to_bugs_is_that_of_float64(capsys):
    """Bugs are planted in float64, whatever type the cells have. Noise of cells of another type is not the floor."""
    bug = {"name": "it", "caught": True, "named": True, "diagnosis": "", "error": 0.5}
    for dtype, other, expected in (("float32", "float64", 0.5 / 1e-15), ("float64", "float32", 500)):
        cells = [{"noise": 1e-3, "equal": True, "dtype": dtype}, {"noise": 1e-2, "equal": True, "dtype": other}]
        assert report([{"cells": cells}, {"mutants": [bug], "noise": 1e-15}], as_json=True, dtype=dtype) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["distance"] == pytest.approx(expected)
        assert found["noise_floor"] == 1e-3


def _cell(layout, **facts):
    layout = {"dp": 1, "mp": 1, "pp": 2, "schedule": "1f1b", "microbatches": 4, "split": {}, **layout}
    worst = {"quantity": "state of fc2.weight momentum", "step": 19, "error": 1e-15, "bound": 1e-10}
    facts = {"network": "mlp", "ranks": 2, "equal": True, "seconds": 1.0, "noise": 1e-15, **facts}
    return {"layout": layout, "worst": worst, "divergence": None, "note": "", "dtype": "float64", **facts}


def test_step_numbers_above_the_number_of_batches_are_explained(capsys):
    note = "pipedream updates after each microbatch; its steps count these updates\n"
    for schedule in ("1f1b", "pipedream"):
        assert report([{"cells": [_cell({"schedule": schedule})]}], as_json=False) == 0
        assert (note in capsys.readouterr().out) == (schedule == "pipedream")


@pytest.mark.parametrize("columns", ["80", None])
def test_tables_fit_a_terminal(capsys, monkeypatch, columns):
    """With 80 columns if COLUMNS says so; otherwise each row is one line. No number is cut off."""
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    split = {"conv1": "filters", "conv2": "columns", "classifier": "output:whole"}
    diagnosis = "a missing reduction over the ranks that share the layer: each has its own summand"
    bug = {"name": "tiles' weight gradients not summed", "caught": True, "named": True, "error": 0.5}
    found = [
        {"cells": [_cell({"split": split}, network="lenet5_small", seconds=12345.67)]},
        {"mutants": [{**bug, "diagnosis": f"first divergence: x; likely {diagnosis}"}], "noise": 1e-15},
    ]
    assert report(found, as_json=False) == 0
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if not re.match("1 of 1|noise floor", line)]
    assert all(text in out for text in ("largest", "1.0e-15", "12345.67", "lenet5_small"))
    assert "…" not in out
    assert (diagnosis in out) == (columns is None)
    if columns:
        assert max(map(len, rows)) <= 80


@pytest.mark.grid
def test_all_with_other_steps_batches_and_types(monkeypatch, capsys):
    """On two ranks only."""
    monkeypatch.setattr("parallel_dl.cli.verify.RANKS", (2,))
    flags = ("--steps", "7", "--dtype", "float32", "--batch-size", "40", "--json")
    assert main(["verify", "--all", *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {cell["network"] for cell in found["cells"]} >= {"mlp", "lenet5_small"}
    networks = [cell for cell in found["cells"] if cell["network"] != "movements"]  # which are always float64
    assert all(cell["worst"]["bound"] >= 1e-5 for cell in networks)
    assert found["distance"] >= 1e4
