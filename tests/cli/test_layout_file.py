"""--layout FILE: it says what the flags say, and what is wrong in it is told before a rank is started."""

import json
import os

import pytest
from test_commands import PARALLEL_DL, ROOT, call, mpirun

from parallel_dl import launch
from parallel_dl.cli import main
from parallel_dl.cli.flags import LayoutFlags
from parallel_dl.cli.layout import layout_of
from parallel_dl.errors import InputError
from parallel_dl.launch import find_mpirun
from parallel_dl.layout import Layout

EXAMPLE = ROOT / "docs" / "examples" / "layout.toml"


def train(*arguments):
    status, out, err = call("train", "mlp", "--json", "--steps", 2, *arguments)
    assert (status, err) == (0, ""), err
    return json.loads(out)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """written(text) -> the name of a file with it, in the working folder."""
    monkeypatch.chdir(tmp_path)

    def write(text):
        (tmp_path / "layout.toml").write_text(text)
        return "layout.toml"

    return write


def test_the_example_is_what_its_flags_say():
    ways = {"fc1": "output", "fc2": "input"}
    layout = Layout(dp=2, mp=2, microbatches=2, split=ways)
    assert Layout.read(EXAMPLE) == layout
    assert (
        layout_of(LayoutFlags(dp=2, mp=2, microbatches=2, split=[f"{name}={way}" for name, way in ways.items()]))
        == layout
    )
    run = train("--layout", EXAMPLE)
    assert run["layout"] == {"dp": 2, "mp": 2, "pp": 1, "schedule": None, "microbatches": 2, "split": ways}
    assert run["ranks"] == 4


def test_flags_beside_the_file_say_what_it_does_not(written):
    file = written('pp = 2\nstages = ["fc2"]\n')
    expected = Layout(pp=2, stages=["fc2"], schedule="gpipe", microbatches=2)
    assert layout_of(LayoutFlags(file, schedule="gpipe")) == expected
    assert layout_of(LayoutFlags(pp=2, stage=["fc2"], schedule="gpipe")) == expected


def test_a_hybrid(written):
    """Its ranks are `dp`, as in Python; beside the flag --hybrid, too."""
    expected = Layout(dp=2, hybrid="owt", scheme="c", variable_batch=True)
    assert layout_of(LayoutFlags(written('hybrid = "owt"\ndp = 2\nvariable_batch = true\n'), scheme="c")) == expected
    assert layout_of(LayoutFlags(written("dp = 2\nvariable_batch = true\n"), hybrid="owt", scheme="c")) == expected


@pytest.mark.grid
def test_inside_a_users_own_mpirun(written):
    """As many replicas as its ranks allow, or as many ranks as the file says."""
    written("mp = 2\n")
    status, out, _ = call("train", "mlp", "--steps", 1, "--json", "--layout", "layout.toml", command=mpirun(4))
    assert (status, json.loads(out)["layout"]["dp"]) == (0, 2)
    written("dp = 2\nmp = 2\n")
    status, out, err = call("train", "mlp", "--json", "--layout", "layout.toml", command=mpirun(2))
    assert (status, out.strip().startswith("{")) == (2, False)
    said = "parallel-dl: layout.toml: dp 2 mp 2: needs 4 ranks, but mpirun started 2; use dp 1"
    assert err.count(said) == 1


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (("dp = 2", "mp = 2"), "--layout layout.toml: rank 1 reads a different layout than rank 0"),
        pytest.param(
            ("dp = 2", None), "layout file layout.toml: no such file; expected a layout in TOML", marks=pytest.mark.grid
        ),
    ],
)
def test_nodes_with_different_files(tmp_path, texts, said):
    """Two ranks in two folders, as on nodes without a common disk: no rank waits for the other."""
    places = []
    for rank, text in enumerate(texts):
        folder = tmp_path / str(rank)
        folder.mkdir()
        if text is not None:
            (folder / "layout.toml").write_text(text)
        places.append(["-n", "1", "-wdir", folder, *PARALLEL_DL, "train", "mlp", "--json", "--layout", "layout.toml"])
    status, _, err = call(*places[0], ":", *places[1], command=[str(find_mpirun())])
    assert status == 2
    assert err.count(f"parallel-dl: {said}") == 1


def refused(capfd, monkeypatch, *arguments):
    """The line that is said, without a rank."""
    monkeypatch.setattr(launch, "run", lambda *_: pytest.fail("ranks were started"))
    assert main(["train", "mlp", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err.removeprefix("parallel-dl: ").rstrip()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "microbatch = 2",
            "layout.toml: unknown key 'microbatch': did you mean 'microbatches'? expected one of chunks, dp,",
        ),
        ('dp = "2"', "layout.toml: dp '2': must be a whole number"),
        ("mp = true", "layout.toml: mp true: must be a whole number"),
        ("pp = 2.0", "layout.toml: pp 2.0: must be a whole number"),
        ("schedule = 1", "layout.toml: schedule 1: must be a string"),
        ('stages = "fc2"', "layout.toml: stages 'fc2': must be a list of strings"),
        ("stages = [2]", "layout.toml: stages, a list with 2: must be a string"),
        ('split = "fc1=output"', "layout.toml: split 'fc1=output': must be a table"),
        ("[split]\nfc1 = 2", "layout.toml: split.fc1 2: must be a string"),
        (
            "[split]\na.fc1 = 'output'",
            'layout.toml: split.a {"fc1": "output"}: must be a string; names with dots are in',
        ),
        ("dp = 0", "layout.toml: dp 0: must be at least 1"),
        ("dp = 2\nmp = 1025", "layout.toml: mp 1025: must be at most 1024"),
        ("pp = 2\npp = 3", "layout file layout.toml: is not TOML: Cannot overwrite a value"),
        ("stages = ['fc2']", "layout.toml: stages fc2: needs a pipeline"),
        ("chunks = 2", "layout.toml: chunks 2: needs a pipeline"),
        ("pp = 12", "layout.toml: pp 12: the network has 3 layers with weights"),
        ("pp = 2\nstages = ['fc9']", "layout.toml: stages fc9: expected one of"),
        ("pp = 2\nschedule = '1f2b'", "layout.toml: unknown schedule '1f2b': did you mean '1f1b'?"),
        ("[split]\nfc1 = 'output'", "layout.toml: split fc1=output: needs --mp 2 or more"),
        ("mp = 2\n[split]\nfc9 = 'output'", "layout.toml: split fc9=output: there is no layer fc9"),
        ("hybrid = 'owl'", "layout.toml: unknown hybrid 'owl': did you mean 'owt'?"),
        ("hybrid = 'owt'\nmp = 2", "layout.toml: mp 2: cannot be combined with hybrid owt"),
        ("scheme = 'b'", "layout.toml: scheme b: needs --hybrid"),
    ],
)
def test_what_cannot_be(capfd, monkeypatch, written, text, said):
    assert refused(capfd, monkeypatch, "--layout", written(text)).startswith(said)


@pytest.mark.parametrize(
    ("text", "flags", "said"),
    [
        ("dp = 2", ("--dp", "2"), "--dp: is also set in layout.toml, as dp; set it only once"),
        ("pp = 2\nstages = ['fc2']", ("--stage", "fc3"), "--stage: is also set in layout.toml, as stages; set it"),
        ("mp = 2\n[split]\nfc1 = 'output'", ("--split", "fc2=input"), "--split: is also set in layout.toml, as split;"),
        ("dp = 2\nhybrid = 'owt'", ("--ranks", "3"), "--ranks: is also set in layout.toml, as dp;"),
        ("dp = 2", ("--mp", "0"), "--mp 0: must be at least 1"),
        ("dp = 2", ("--split", "fc1=output"), "--split fc1=output: needs --mp 2 or more"),
        ("dp = 2", ("--dtype", "float16"), "unknown --dtype 'float16'"),
    ],
)
def test_what_cannot_be_beside_a_file(capfd, monkeypatch, written, text, flags, said):
    assert refused(capfd, monkeypatch, "--layout", written(text), *flags).startswith(said)


def test_files_that_cannot_be_read(capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    os.mkfifo(tmp_path / "pipe")
    for name, said in (
        ("no.toml", "no such file"),
        (".", "is a folder"),
        ("pipe", "is not a regular file"),
        ("/dev/zero", "is not a regular file"),
        ("bytes.toml", "is not UTF-8 text (byte 0)"),
    ):
        line = refused(capfd, monkeypatch, "--layout", name)
        assert line == f"layout file {name}: {said}; expected a layout in TOML"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dp = 0", "layout.toml: dp 0: must be at least 1"),
        ("stages = ['a']", "layout.toml: stages: needs a pipeline: pp above 1, or a schedule"),
        ("hybrid = 'owt'\npp = 2", "layout.toml: pp 2: must be 1 with hybrid owt"),
    ],
)
def test_in_python(written, text, said):
    with pytest.raises(InputError) as caught:
        Layout.read(written(text))
    assert str(caught.value).startswith(said)
    assert Layout.read(written("pp = 3")) == Layout(pp=3, microbatches=3)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--momentum", "nan"), "--momentum nan: must be at least 0 and below 1"),
        (("--nesterov", "--momentum", "0"), "--nesterov: needs a --momentum above 0"),
        (
            ("--optimizer", "adam", "--momentum", "0.5"),
            "--momentum 0.5: is not an option of --optimizer adam; it is one of sgd, lars",
        ),
        (("--optimizer", "lars", "--nesterov"), "--nesterov: is not an option of --optimizer lars; it is one of sgd"),
        (("--optimizer", "lasr"), "unknown --optimizer 'lasr': did you mean 'lars'?"),
        (("--clip-norm", "0"), "--clip-norm 0.0: must be a finite number above 0"),
        (("--clip-norm", "inf"), "--clip-norm inf: must be a finite number above 0"),
        (("--clip-norm", "1", "--schedule", "pipedream"), "--clip-norm 1.0: pipedream updates each stage by itself"),
    ],
)
def test_flags_of_the_update_rule(capfd, monkeypatch, flags, said):
    assert refused(capfd, monkeypatch, "--dp", "2", *flags).startswith(said)


@pytest.mark.grid
def test_lars_and_clipping_on_several_ranks(capsys):
    """The same losses as alone; clipping is seen in them, and LARS lowers them."""
    flags = ("--dtype", "float64", "--optimizer", "lars", "--clip-norm", 0.1, "--steps", 8)
    both = train(*flags, "--dp", 2, "--mp", 2)
    alone = {}
    for name, given in (("clipped", flags), ("free", flags[:4])):
        assert main(["train", "mlp", "--json", "--steps", "8", *map(str, given)]) == 0
        alone[name] = json.loads(capsys.readouterr().out)["losses"]
    assert both["losses"] == pytest.approx(alone["clipped"], rel=1e-10)
    assert alone["free"] != pytest.approx(alone["clipped"], rel=1e-6)
    assert alone["free"][-1] < alone["free"][0]
