"""FILE.py:NAME in place of a name: the page's examples run, on ranks too; what is wrong is one line with its place."""

import json
import re
import shlex

import pytest
from conftest import ROOT
from test_commands import call

from parallel_dl import launch, optim
from parallel_dl.cli import main
from parallel_dl.layout import Layout
from parallel_dl.nn import Parameter, initializers
from parallel_dl.optim import by_name

PAGE = (ROOT / "docs" / "own-files.md").read_text()
FILES = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
COMMANDS = [
    shlex.split(line)[1:]
    for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the page's files."""
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def said(capfd, monkeypatch):
    """said(*arguments) -> the line with which a command is refused, before a rank is started."""
    monkeypatch.setattr(launch, "run", lambda *_: pytest.fail("ranks were started"))

    def call_(*arguments):
        assert main(list(map(str, arguments))) == 2
        out, err = capfd.readouterr()
        assert (out, err.count("\n"), err[:13]) == ("", 1, "parallel-dl: "), err
        return err[13:-1]

    return call_


def test_the_page_has_a_file_of_each_kind():
    assert list(FILES) == ["my_net.py", "my_layers.py", "my_schedule.py", "my_rule.py", "my_loss.py", "my_data.py"]
    own_layer = ["train", "plan", "summary", "verify"]
    assert [command[0] for command in COMMANDS] == ["train", "verify", "summary", *own_layer, "schedule"]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_the_commands_of_the_page(here, command):
    status, out, err = call(*command)
    assert (status, err) == (0, ""), err
    assert "my_" in out


def test_ranks_train_as_one(here):
    """Own network, optimizer, loss and data set: two replicas of two stages have the losses of one rank."""
    flags = COMMANDS[0][1 : COMMANDS[0].index("--pp")]
    common = ("train", *flags, "--dtype", "float64", "--steps", 3, "--microbatches", 4, "--momentum", 0.5, "--json")
    at = common.index("--schedule")
    one, four = (
        json.loads(call(*common[: at + 2 * bool(ranks)], *common[at + 2 :], *ranks)[1])
        for ranks in ((), ("--pp", 2, "--dp", 2))
    )
    assert four["ranks"] == 4
    assert four["layout"]["schedule"] == "my_schedule.py:mine"
    assert four["network"] == "my_net.py:MyNet"
    assert four["dataset"] == "my_data.py:load"
    assert four["losses"] == pytest.approx(one["losses"], rel=1e-12)


def test_own_layer_is_split(here):
    """Its rule, and the local maths of another that combines values of all ranks: the losses of one rank, also in a
    pipeline; and what is sent is what its rule says, by the page's split."""
    common = ("train", "my_layers.py:MyNet", "--dtype", "float64", "--steps", 2, "--microbatches", 2, "--json")
    split = ("--split", "gated=output", "--split", "fc=input")
    one, two, four = (
        json.loads(call(*common, *ranks)[1])
        for ranks in ((), ("--mp", 3, *split, "--ledger"), ("--mp", 2, "--pp", 2, *split))
    )
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-12)
    assert four["losses"] == pytest.approx(one["losses"], rel=1e-12)
    sent = {(row["direction"], row["messages"], row["values"]) for row in two["ledger"] if row["layer"] == "softmax"}
    assert sent == {("forward", 2 * 4, 4 * 64), ("backward", 2 * 4, 4 * 64)}


def test_own_layer_meets_in_backward_if_one_rank_needs_no_gradient(here):
    """The softmax of the page after branches of which one rank has only the Identity, at the network's input."""
    text = (here / "my_layers.py").read_text()
    net = """
def Both(input_shape, classes):
    n = math.prod(input_shape)
    both = nn.Branches(a=nn.Linear(n, n), b=nn.Identity(), join="concatenate")
    return nn.Sequential(flatten=nn.Flatten(), both=both, softmax=Softmax(2 * n), fc=nn.Linear(2 * n, classes))
"""
    (here / "my_layers.py").write_text(text + net)
    common = ("train", "my_layers.py:Both", "--dtype", "float64", "--steps", 2, "--json")
    split = ("--mp", 2, "--split", "both=towers", "--split", "fc=input", "--checked")
    one, two = (json.loads(call(*common, *ranks)[1])["losses"] for ranks in ((), split))
    assert two == pytest.approx(one, rel=1e-12)


def test_verify_with_all_of_them(here):
    flags = ["--dp", 2, "--optimizer", "my_rule.py:Rule", "--dataset", "my_data.py:load", "--loss", "my_loss.py:loss"]
    status, out, err = call("verify", "my_net.py:MyNet", *flags)
    assert (status, err) == (0, ""), out + err
    assert "1 of 1 equal" in out


BROKEN = {
    "syntax.py": "def f(:\n",
    "fails.py": "x = 1\ny = x / 0\n",
    "inside.py": "def f(*arguments):\n    return undefined\n",
    "number.py": "f = 3\n",
    "rules.py": """
from parallel_dl import optim

class Rebinds(optim.Optimizer):
    rule = "rebinds"

    def __init__(self, parameters, lr=0.1):
        super().__init__(parameters, lr)

    def _update(self, options, rate, updates, weights, gradient):
        weights = weights - rate * gradient

class Lacks(Rebinds):
    def state_of(self, options):
        return ("m",)
""",
    "wrong.py": "def f(*arguments):\n    return 'x'\n",
    "layers.py": "from parallel_dl import nn\n\n\ndef f(shape, classes):\n    return nn.Conv2d(3, 2, 1, groups=2)\n",
    "circle.py": "def f(pp, m):\n    return [[(s, k, j) for k in 'BF' for j in range(m)] for s in range(pp)]\n",
    "half.py": "def f(pp, m):\n    return [[(0, 'F', 0)]]\n",
    "halves.py": "def f(pp, m):\n    return [[0, 0]]\n",
    "quits.py": "def f(*arguments):\n    raise SystemExit(3)\n",
    "many.py": "def f(outputs, targets, total):\n    return outputs\n",
    "float.py": "def f(outputs, targets, total):\n    return float(outputs.data.sum())\n",
    "constant.py": """from parallel_dl.autograd import Tensor
def f(outputs, targets, total): return Tensor(outputs.data.sum())
""",
    "back.py": """from parallel_dl.autograd import primitive
@primitive
def f(outputs, *, targets=None, total=None):
    def back(g): raise RuntimeError("planted")
    return outputs.sum(), (back,)
loss = lambda outputs, targets, total: f(outputs)
""",
    "nets.py": """import math
from parallel_dl import nn
from parallel_dl.autograd import primitive


class Own(nn.Module):
    def __init__(self, forward, shape=lambda s: s):
        super().__init__()
        self.maths, self.shape = forward, shape

    def forward(self, x):
        return self.maths(x)

    def output_shape(self, input_shape):
        return self.shape(input_shape)


@primitive
def no_way_back(x):
    def back(g):
        raise RuntimeError("planted")
    return x + 0, (back,)


class Bare(nn.Module):
    def __init__(self): pass


def net(*own, outputs=10):
    return lambda shape, classes: nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), outputs), *own)


few = net(outputs=7)
empty = lambda shape, classes: nn.Sequential()
bare = lambda shape, classes: Bare()
inner = lambda shape, classes: nn.Sequential(Bare())
number = net(3)
raises = net(Own(lambda x: x.nothing))
backward = net(Own(no_way_back))
pair = net(Own(lambda x: (x,)))
one = net(Own(lambda x: x[:1]))
no_shape = net(Own(lambda x: x, lambda s: s.nothing))
""",
}


@pytest.fixture
def broken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in BROKEN.items():
        (tmp_path / name).write_text(text)


NETWORK = [
    ("no.py:f", "no.py: no such file; expected a Python file"),
    (".py:f", ".py: no such file; expected a Python file"),
    ("syntax.py:f", "syntax.py, line 1: SyntaxError: invalid syntax"),
    ("fails.py:f", "fails.py, line 2: ZeroDivisionError: division by zero"),
    ("inside.py:fg", "unknown name 'fg': did you mean 'f'? expected f"),
    ("inside.py:", "unknown name '': expected f"),
    ("inside.py:f", "inside.py, line 2: NameError: name 'undefined' is not defined"),
    ("number.py:f", "is of type int; expected a function or a class"),
    ("wrong.py:f", "line 1: returns a value of type str; expected Module"),
    ("layers.py:f", "layers.py, line 5: "),
    ("quits.py:f", "quits.py, line 2: SystemExit: 3"),
]


@pytest.mark.parametrize(("name", "line"), NETWORK, ids=[name for name, _ in NETWORK])
@pytest.mark.parametrize("command", ["train", "summary", "verify"])
def test_a_network_that_is_wrong(broken, said, command, name, line):
    flags = ["--dp", 2] * (command != "summary")
    told = said(command, name, *flags)
    assert told.startswith(f"network {name}: ")
    assert line in told


NETWORKS = {
    "few": "gives (7,) for a sample: cross_entropy: targets must be in 0..6",
    "empty": "has no parameters, so there is nothing to train",
    "bare": "its __init__ does not call super().__init__()",
    "inner": "nets.py, line N: AttributeError: call super().__init__() in Bare.__init__",
    "number": "nets.py, line N: TypeError: Sequential: layer 2 is 3; expected a Module",
    "raises": "nets.py, line N: AttributeError: 'Tensor' object has no attribute 'nothing'",
    "backward": "nets.py, line N: RuntimeError: planted",
    "pair": "gives a value of type tuple; expected a Tensor",
    "one": "makes (1, 10) of 2 samples; expected (2, ...)",
}


@pytest.mark.parametrize("command", ["train", "verify"])
@pytest.mark.parametrize("layout", [("--dp", 2), ("--mp", 2)], ids=["dp", "mp"])
@pytest.mark.parametrize(("name", "line"), NETWORKS.items(), ids=NETWORKS)
def test_a_network_that_cannot_be_trained(broken, said, command, layout, name, line):
    told = re.sub(r"line \d+", "line N", said(command, f"nets.py:{name}", *layout))
    assert told.startswith(f"network nets.py:{name}: {line}")


@pytest.mark.parametrize("command", ["train", "summary", "plan"])
def test_a_network_whose_shapes_raise(broken, said, command):
    told = re.sub(r"line \d+", "line N", said(command, "nets.py:no_shape"))
    assert (
        told == "network nets.py:no_shape: nets.py, line N: AttributeError: 'tuple' object has no attribute 'nothing'"
    )


def test_a_file_without_a_name_in_it(broken, said):
    assert (
        said("train", "number.py")
        == "unknown network 'number.py': to use your own, give FILE.py:NAME, with its name in the file"
    )


OTHERS = [
    (("--schedule", "circle.py:f", "--pp", 2), "--schedule circle.py:f: "),
    (
        ("--schedule", "half.py:f", "--pp", 2),
        "--schedule half.py:f returned programs for 1 rank and 1 microbatch; expected 2 and 2",
    ),
    (
        ("--schedule", "halves.py:f", "--pp", 2),
        "--schedule halves.py:f returned [[0, 0]]: expected a list for each rank of (stage, kind, ",
    ),
    (
        ("--schedule", "wrong.py:f", "--pp", 2),
        "--schedule wrong.py:f: line 1: returns a value of type str; expected list",
    ),
    (
        ("--optimizer", "rules.py:Rebinds"),
        "--optimizer rules.py:Rebinds: changes no weight in three updates; expected _update to write into its arrays",
    ),
    (("--optimizer", "rules.py:Lacks"), "--optimizer rules.py:Lacks: rules.py: TypeError: Rebinds._update() takes 6 "),
    (("--optimizer", "wrong.py:f"), "--optimizer wrong.py:f: line 1: returns a value of type str; expected Optimizer"),
    (("--optimizer", "inside.py:f"), "--optimizer inside.py:f: inside.py, line 2: NameError: "),
    (("--loss", "wrong.py:f"), "--loss wrong.py:f: line 1: returns a value of type str; expected Tensor"),
    (("--loss", "many.py:f"), "--loss many.py:f: returns shape (2, 10); expected one number, summed over the samples"),
    (("--loss", "float.py:f"), "--loss float.py:f: line 1: returns a value of type float; expected Tensor"),
    (("--loss", "constant.py:f"), "--loss constant.py:f: has no gradient; expected a Tensor computed from the outputs"),
    (("--loss", "back.py:loss"), "--loss back.py:loss: back.py, line 4: RuntimeError: planted"),
    (("--dataset", "wrong.py:f"), "dataset wrong.py:f: line 1: returns a value of type str; expected Dataset"),
    (("--dataset", "inside.py:f"), "dataset inside.py:f: inside.py, line 2: NameError"),
]


@pytest.mark.parametrize(("flags", "line"), OTHERS, ids=lambda value: str(value)[:40])
def test_others_that_are_wrong(broken, said, flags, line):
    assert said("train", "mlp", *flags).startswith(line)


def test_a_flag_that_the_rule_does_not_take(here, said):
    line = "--nesterov: is not an option of --optimizer my_rule.py:Rule; it is one of sgd"
    assert said("train", "mlp", "--optimizer", "my_rule.py:Rule", "--nesterov") == line
    assert said("train", "mlp", "--optimizer", "my_rule.py:Rule", "--weight-decay", 1) == (
        "--weight-decay 1.0: is not an option of --optimizer my_rule.py:Rule; it is one of sgd, adam, adamw, lars"
    )


def test_a_layout_file_names_a_schedule(here, said):
    (here / "layout.toml").write_text('pp = 2\nschedule = "my_schedule.py:nine"\n')
    line = "unknown name 'nine': did you mean 'mine'? expected mine"
    assert said("train", "mlp", "--layout", "layout.toml") == f"layout.toml: schedule my_schedule.py:nine: {line}"
    assert Layout(pp=2, schedule="my_schedule.py:mine").schedule_name == "my_schedule.py:mine"


@pytest.mark.parametrize("name", optim.RULES)
def test_an_optimizer_is_one_file(name):
    """What the command line and verify know of a rule is in its class."""
    rate, options = by_name.verified(name)
    parameter = Parameter((1,), initializers.constant(0.0))
    made = optim.make(name, [parameter], rate, **options)
    assert type(made) is optim.RULES[name]
    assert by_name.default_rate(name) > 0
    assert "_magnitudes" in {key for base in type(made).__mro__[:-2] for key in vars(base)}


def test_summary_says_whose_multiply_adds_are_not_known(here, capfd):
    assert main(["summary", "my_layers.py:MyNet"]) == 0
    assert (
        "Multiply-adds are not known for your own layers (gated, softmax), and not counted." in capfd.readouterr().out
    )
    assert main(["summary", "vgg_small"]) == 0
    assert "your own layers" not in capfd.readouterr().out


SENDS = """
import math
import numpy as np
from parallel_dl import nn
from parallel_dl.mpi import world

class Sends(nn.Module):
    def forward(self, x):
        if world().size > 1:
            world().all_reduce(np.ones(2 + WRONG * world().rank))
        return x

    def output_shape(self, input_shape):
        return input_shape

def Net(input_shape, classes):
    return nn.Sequential(flat=nn.Flatten(), sends=Sends(), fc=nn.Linear(math.prod(input_shape), classes))
"""


def test_what_a_layer_sends_by_itself_is_checked_and_counted(tmp_path, monkeypatch, capfd):
    """Over `world()`, which the layer finds by itself."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "right.py").write_text(SENDS.replace("WRONG", "0"))
    (tmp_path / "wrong.py").write_text(SENDS.replace("WRONG", "1"))
    flags = ("--dp", "2", "--steps", "1")
    assert main(["train", "right.py:Net", *flags, "--ledger", "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)["ledger"]
    sent = [(row["rank"], row["layer"], row["values"]) for row in rows if row["axis"] == "world"]
    assert sent == [(0, "", 2), (1, "", 2)]
    assert main(["train", "wrong.py:Net", *flags, "--checked"]) == 2
    (said,) = capfd.readouterr().err.splitlines()
    assert said == (
        "parallel-dl: network wrong.py:Net: wrong.py, line 10: CollectiveMismatch: on communicator 'world': "
        "rank 0 calls all_reduce #1 (sum, float64, shape (2,)) "
        "but rank 1 calls all_reduce #1 (sum, float64, shape (3,))"
    )
