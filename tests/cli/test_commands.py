"""The command line as a user meets it: what it prints, what it refuses, with which exit status."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import HANG
from idx_files import write_idx

from parallel_dl import checkpoint, datasets, launch, networks
from parallel_dl.cli import main
from parallel_dl.cli.flags import TrainingFlags
from parallel_dl.cli.training import Job
from parallel_dl.launch import find_mpirun
from parallel_dl.layout import Layout

ROOT = Path(__file__).parents[2]
PARALLEL_DL = [sys.executable, "-m", "parallel_dl"]
HELLO = ROOT / "docs" / "examples" / "hello.py"


def call(*arguments, command=PARALLEL_DL, seconds=HANG, **variables):
    """Runs a command in a session of its own; a hang fails the test."""
    settings = {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    if Path(command[0]).name in ("mpirun", "mpiexec"):
        settings["OMPI_MCA_btl"] = "self,sm"  # as our launcher has it; otherwise Open MPI needs a second more to start
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **settings, **variables}
    process = subprocess.Popen(
        [*command, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"{arguments}: still running after {seconds} s")
    except KeyboardInterrupt:  # the program, in a session of its own, does not get it
        process.terminate()
        process.wait()
        raise
    return process.returncode, out, err


def train(*arguments, **options):
    status, out, err = call("train", "mlp", "--json", *arguments, **options)
    assert (status, err) == (0, ""), err
    assert out.count("\n") == 1
    return json.loads(out, parse_constant=pytest.fail)


def mpirun(ranks):
    return [str(find_mpirun()), "-n", str(ranks), *PARALLEL_DL]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(the JSON object, the file of the weights) of two epochs on two ranks."""
    file = tmp_path_factory.mktemp("trained") / "w.safetensors"
    return train("--epochs", 2, "--dp", 2, "--output", file), file


def test_json_has_the_keys_of_the_documentation(trained):
    run, _ = trained
    assert set(run) == {
        *("network", "dataset", "layout", "ranks", "batch_size", "steps", "losses", "test_loss", "test_accuracy"),
        *("seconds", "samples_per_second", "weights_sha256"),
    }
    layout = {"dp": 2, "mp": 1, "pp": 1, "schedule": None, "microbatches": 1, "split": {}}
    assert run["layout"] == layout
    assert (run["network"], run["dataset"], run["ranks"], run["batch_size"]) == ("mlp", "digits", 2, 64)
    assert run["steps"] == len(run["losses"]) == 2 * 23
    assert re.fullmatch("[0-9a-f]{64}", run["weights_sha256"])


@pytest.mark.parametrize("dp", [1, pytest.param(4, marks=pytest.mark.grid)])
def test_the_defaults_reach_96_per_cent(dp):
    run = train("--dp", dp)
    assert run["test_accuracy"] >= 0.96


@pytest.mark.grid
@pytest.mark.parametrize(
    ("dp", "batch", "more"),
    [
        pytest.param(3, 100, (), marks=pytest.mark.grid),
        pytest.param(8, 5, (), marks=pytest.mark.grid),
        (2, 64, ("--microbatches", 3)),
    ],
)
def test_losses_do_not_depend_on_the_ranks(dp, batch, more):
    common = ("--batch-size", batch, "--steps", 8, "--dtype", "float64", "--seed", 7)
    one, many = train(*common), train(*common, "--dp", dp, *more)
    np.testing.assert_allclose(many["losses"], one["losses"], rtol=1e-10)
    assert many["steps"] == 8


def test_the_command_of_the_readme():
    flags = "--dp 2 --epochs 5 --lr 0.1 --momentum 0.9 --batch-size 128 --dtype float64 --seed 7"
    run = train(*flags.split())
    assert run["steps"] == 5 * 12
    assert train(*flags.split(), "--allreduce", "mpi")["weights_sha256"] == run["weights_sha256"]


@pytest.mark.grid
def test_inside_a_users_own_mpirun():
    status, out, _ = call("train", "mlp", "--steps", 3, "--json", command=mpirun(3))
    assert status == 0
    assert json.loads(out)["layout"]["dp"] == 3
    status, out, err = call("train", "mlp", "--dp", 2, "--json", command=mpirun(3))
    assert (status, out.strip().startswith("{")) == (2, False)
    assert err.count("parallel-dl: --dp 2: needs 2 ranks, but mpirun started 3; use --dp 3") == 1


def test_what_is_not_finite_is_null():
    status, out, err = call("train", "mlp", "--lr", 1e30, "--epochs", 1, "--json")
    assert (status, err) == (0, "parallel-dl: the loss is not finite from update 1 on; try a smaller --lr\n")
    run = json.loads(out, parse_constant=pytest.fail)
    assert None in run["losses"]
    assert run["test_loss"] is None


def test_output_holds_the_weights(trained):
    run, file = trained
    data = datasets.load("digits")
    network = networks.create("mlp", data.input_shape, data.classes)
    network.load_state_dict(checkpoint.load(file))
    accuracy = (network(data.x_test).data.argmax(1) == data.y_test).mean()
    assert accuracy == pytest.approx(run["test_accuracy"], abs=1e-9)
    assert list(file.parent.iterdir()) == [file]


def test_the_table_is_plain_text_when_piped():
    status, out, err = call("train", "mlp", "--dp", 2, "--epochs", 1)
    assert (status, err) == (0, "")
    assert "test accuracy" in out
    assert "\x1b" not in out
    assert out.splitlines()[-1].startswith("In float32, rounding makes losses differ between layouts")


@pytest.mark.parametrize(
    ("layout", "dtype", "said"),
    [
        (Layout(dp=2), "float32", True),
        (Layout(mp=2), "float32", True),
        (Layout(dp=2, hybrid="owt"), "float32", True),
        (Layout(dp=2), "float64", False),
        (Layout(), "float32", False),
        (Layout(pp=2), "float32", False),
        (Layout(dp=2, reproducible=True), "float32", False),
    ],
)
def test_rounding_is_told_where_layouts_differ_by_it(layout, dtype, said):
    assert Job("mlp", layout, TrainingFlags(dtype=dtype)).rounds_by_layout == said


@pytest.mark.grid
def test_srun_without_pmi_and_info():
    status, out, err = call("train", "mlp", "--dp", 2, SLURM_STEP_ID="0", SLURM_NTASKS="4")
    assert (status, out) == (2, "")
    assert "srun --mpi=pmix" in err
    status, out, _ = call("info", "--json")
    assert status == 0
    assert json.loads(out)["mpirun"] == str(find_mpirun())


def test_hello_runs_alone_and_on_ranks():
    assert len(HELLO.read_text().splitlines()) <= 25
    alone = call(HELLO, command=[sys.executable])
    mpi = call(HELLO, command=[*mpirun(2)[:3], sys.executable])
    ours = call("run", "-n", 3, HELLO)
    assert alone[0] == mpi[0] == ours[0] == 0
    losses = [[float(line.split()[-1]) for line in out.splitlines()] for _, out, _ in (alone, mpi, ours)]
    assert len(losses[0]) == 10
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-3)
    np.testing.assert_allclose(losses[2], losses[0], rtol=2e-3)


def test_fine_tuning_runs_alone_and_on_ranks():
    example = HELLO.with_name("fine_tuning.py")
    alone, ours = call(example, command=[sys.executable]), call("run", "-n", 2, example)
    assert alone[0] == ours[0] == 0
    assert "updates of the body 46, of the head 92" in ours[1]
    numbers = [[float(word.rstrip("%")) for word in re.findall(r"[\d.]+", out)] for _, out, _ in (alone, ours)]
    assert len(numbers[0]) == 4 * 2 + 3
    np.testing.assert_allclose(numbers[1], numbers[0], rtol=2e-3)


def test_an_interrupted_command_says_so(monkeypatch, capsys):
    """typer by itself turns it into a status, and says nothing."""

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("json.dumps", interrupted)
    assert main(["schedule", "1f1b", "--pp", "2", "--microbatches", "2", "--json"]) == 130
    assert capsys.readouterr().err == "parallel-dl: stopped by SIGINT\n"


def test_without_a_command_it_shows_its_help(capsys):
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("Usage: parallel-dl [OPTIONS] COMMAND [ARGS]...\n")
    assert err == ""


BAD = [
    (["train", "mpl"], "unknown network 'mpl': did you mean 'mlp'?"),
    (["train"], "Missing argument"),
    (["trian", "mlp"], "trian"),
    (["train", "mlp", "--dp", "0"], "--dp 0: must be at least 1"),
    (["train", "mlp", "--dp", "-1"], "--dp -1: must be at least 1"),
    (["train", "mlp", "--dp", "two"], "--dp"),
    (["train", "lenet5"], "--dataset digits: network lenet5: takes 1 x 28 x 28, not 1 x 8 x 8; try lenet5_small"),
    (["train", "mlp", "--microbatches", "0"], "--microbatches 0: must be at least 1"),
    (["train", "mlp", "--batch-size", "0"], "--batch-size 0: must be at least 1"),
    (["train", "mlp", "--epochs", "0"], "--epochs 0: must be at least 1"),
    (["demo", "--ranks", "5000"], "--ranks 5000: must be at most 1024"),
    (["demo", "-n4", "x"], "unexpected argument 'x'"),
    (["train", "mlp", "--nesterov", "3"], "unexpected argument '3': --nesterov takes no value"),
    (["train", "mlp", "--steps", "0"], "--steps 0: must be at least 1"),
    (["train", "mlp", "--lr", "-0.1"], "--lr -0.1: must be a finite number, at least 0"),
    (["train", "mlp", "--lr", "nan"], "--lr nan"),
    (["train", "mlp", "--momentum", "1.5"], "--momentum 1.5: must be at least 0 and below 1"),
    (["train", "mlp", "--weight-decay", "-1"], "--weight-decay -1.0: must be a finite number, at least 0"),
    (["train", "mlp", "--warmup", "-1"], "--warmup -1: must be at least 0"),
    (["train", "mlp", "--seed", "-1"], "--seed -1"),
    (["train", "mlp", "--dtype", "int8"], "unknown --dtype 'int8': expected one of float32, float64"),
    (["train", "mlp", "--optimizer", "sdg"], "did you mean 'sgd'?"),
    (
        ["train", "mlp", "--optimizer", "adam", "--momentum", "0.9"],
        "--momentum 0.9: is not an option of --optimizer adam; it is one of sgd, lars",
    ),
    (["train", "mlp", "--allreduce", "ring"], "expected one of auto, mpi, window"),
    (["train", "mlp", "--lr-policy", "cosin"], "did you mean 'cosine'?"),
    (["train", "mlp", "--bogus"], "--bogus"),
    (["train", "mlp", "--dataset", "digit"], "did you mean 'digits'?"),
    (["train", "mlp", "--output", "/no/such/folder/w"], "there is no folder /no/such/folder"),
    (["train", "mlp", "--output", "/proc/w"], "--output /proc/w: cannot write"),
    (["train", "mlp", "--output", "/tmp"], "is a folder"),
    (["run", "nothing.py"], "program nothing.py: no such file; expected a Python file"),
    (["run", "-n", "0", "nothing.py"], "--ranks 0: must be at least 1"),
    (["demo", "--epochs", "0"], "--epochs 0: must be at least 1"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD, ids=lambda value: " ".join(value) if type(value) is list else "")
def test_bad_input_is_one_line_and_status_2(arguments, said, capfd, monkeypatch):
    """Also for several ranks: none may be started."""
    monkeypatch.setattr(launch, "run", lambda *_: pytest.fail("ranks were started"))
    for more in ([], ["--dp", "3"]) if "--dp" not in arguments and arguments[:2] == ["train", "mlp"] else ([],):
        status = main([*arguments, *more])
        out, err = capfd.readouterr()
        assert (status, out) == (2, "")
        assert err.startswith("parallel-dl: ")
        assert err.count("\n") == 1
        assert said in err


def test_bad_input_as_a_command():
    valid = ", ".join(sorted(networks.NETWORKS))
    assert call("train", "mpl", "--dp", 3) == (
        2,
        "",
        f"parallel-dl: unknown network 'mpl': did you mean 'mlp'? expected one of {valid}\n",
    )


@pytest.mark.grid
@pytest.mark.parametrize("arguments", [("--dp", 0), pytest.param(("--lr", -1), marks=pytest.mark.grid)])
def test_bad_input_inside_a_users_own_mpirun(tmp_path, arguments):
    """Rank 0 is the slowest: it still has its say before another's status ends it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, time\nif os.environ.get('OMPI_COMM_WORLD_RANK', os.environ.get('PMI_RANK')) == '0': time.sleep(1)\n"
    )
    status, out, err = call("train", "mlp", *arguments, command=mpirun(3), PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert (status, out.strip()) == (2, "")
    assert err.count("parallel-dl: ") == 1


@pytest.mark.parametrize(
    "own", [pytest.param(False, marks=pytest.mark.grid), True], ids=["our launcher", "the user's mpirun"]
)
def test_a_file_that_only_one_rank_finds_damaged(tmp_path, own):
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('OMPI_COMM_WORLD_RANK', os.environ.get('PMI_RANK')) == '1':\n"
        "    from parallel_dl import datasets, errors\n"
        "    def load(*_): raise errors.InputError('digits: damaged here')\n"
        "    datasets.load = load\n"
    )
    variables = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    if own:
        status, out, err = call("train", "mlp", command=mpirun(3), **variables)
    else:
        status, out, err = call("train", "mlp", "--dp", 3, **variables)
        assert err == "parallel-dl: digits: damaged here\n"
    assert (status, out.strip(), err.count("parallel-dl: digits: damaged here")) == (2, "", 1)


@pytest.mark.parametrize(
    "more", [("--dp", 2), pytest.param(("--dp", 4, "--allreduce", "window"), marks=pytest.mark.grid)]
)
def test_a_small_dev_shm(isolated, can_unshare, more):
    """Whatever of it fits is used; the rest says a word, and gives the same losses."""
    if not can_unshare:
        pytest.skip("needs root on Linux to mount a small /dev/shm")
    usual = train("--steps", 3, "--dtype", "float64")["losses"]
    for size in ("1m", "256k"):
        command, left = isolated([*PARALLEL_DL, "train", "mlp", "--steps", "3", "--dtype", "float64", "--json"], size)
        status, out, err = call(*more, command=command)
        assert (status, left()) == (0, []), err
        np.testing.assert_allclose(json.loads(out)["losses"], usual, rtol=1e-10)
    assert err.startswith("parallel-dl: gradients are summed by MPI's all-reduce: /dev/shm ")
    assert err.count("\n") == 1


def _truncated(folder):
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])


def _wrong_magic(folder):
    path = folder / "t10k-labels-idx1-ubyte"
    path.write_bytes(b"\x01\x02\x03\x04" + path.read_bytes()[4:])


def _missing(folder):
    (folder / "train-labels-idx1-ubyte").unlink()


@pytest.mark.parametrize(
    "damage", [_truncated, *(pytest.param(damage, marks=pytest.mark.grid) for damage in (_wrong_magic, _missing))]
)
def test_damaged_files(tmp_path, damage):
    random = np.random.default_rng(0)
    for part, count in (("train", 60), ("t10k", 20)):
        images = random.integers(0, 256, (count, 6, 5), dtype=np.uint8)
        write_idx(tmp_path / f"{part}-images-idx3-ubyte", images)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", (np.arange(count) % 4).astype(np.uint8))
    assert train("--dataset", "idx", "--data-dir", tmp_path, "--dp", 2, "--epochs", 1)["steps"] == 1
    damage(tmp_path)
    for ranks in (1, 2):
        status, out, err = call("train", "mlp", "--dataset", "idx", "--data-dir", tmp_path, "--dp", ranks)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert str(tmp_path) in err


def test_numbers_that_are_none(tmp_path):
    x = np.zeros((8, 3))
    x[2, 1] = np.nan
    np.savez(tmp_path / "d.npz", x_train=x, y_train=np.arange(8) % 2, x_test=x[:1], y_test=np.zeros(1, int))
    status, out, err = call("train", "mlp", "--dataset", tmp_path / "d.npz", "--dp", 2)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "d.npz" in err


def test_without_an_mpi_runtime(tmp_path):
    fake = tmp_path / "mpi4py"
    fake.mkdir()
    (fake / "__init__.py").write_text("")
    (fake / "MPI.py").write_text("raise RuntimeError('cannot load MPI library')")
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.prefix = {str(tmp_path)!r}")
    missing = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": str(tmp_path)}
    for dp in (1, 2):
        status, out, err = call("train", "mlp", "--dp", dp, **missing)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "pip install" in err
    assert call("--help", **missing)[0] == 0


def test_a_rank_that_is_killed_in_training_ends_the_job(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('OMPI_COMM_WORLD_RANK', os.environ.get('PMI_RANK')) == '1':\n"
        "    from parallel_dl import trainer\n"
        "    def take(*_): os.kill(os.getpid(), 9)\n"
        "    trainer.Trainer._take = take\n"
    )
    command = ("train", "mlp", "--dp", 2, "--steps", 100000000, "--json")
    status, _out, err = call(*command, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert status not in (0, 2)
    assert "rank 1 was killed by SIGKILL" in err


def test_importing_the_package_is_light():
    code = "import parallel_dl, sys; print([m for m in ('mpi4py', 'typer', 'rich', 'torch') if m in sys.modules])"
    assert call("-c", code, command=[sys.executable])[1] == "[]\n"


def test_called_from_python_with_arguments_of_its_own():
    code = "from parallel_dl.cli import main; main(['train', 'mlp', '--dp', '2', '--steps', '3', '--json'])"
    status, out, err = call("-c", code, "not", "these", command=[sys.executable])
    assert (status, err) == (0, "")
    assert json.loads(out)["steps"] == 3
