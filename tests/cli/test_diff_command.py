"""`parallel-dl diff`: equal and different files, what a difference is called, shards, and what it refuses."""

import json

import numpy as np
import pytest
from conftest import ROOT
from safetensors.numpy import save_file

from parallel_dl import checkpoint, nn
from parallel_dl.cli import main
from parallel_dl.equivalence.compare.files import place_of, read_placement

RANDOM = np.random.default_rng(0)
WEIGHTS = {"fc1.weight": RANDOM.random((6, 4)), "fc1.bias": RANDOM.random(6), "fc10.weight": RANDOM.random((3, 6))}


@pytest.fixture
def write(tmp_path):
    """write(name, arrays) -> the path of a file with them."""

    def write(name, arrays):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        save_file({key: np.ascontiguousarray(array) for key, array in arrays.items()}, path)
        return str(path)

    return write


@pytest.fixture
def diff(capfd):
    """diff(arguments ..., status=0) -> (stdout, stderr)."""

    def diff(*arguments, status=0):
        assert main(["diff", *map(str, arguments)]) == status
        return capfd.readouterr()

    return diff


@pytest.fixture
def changed(write, diff):
    """changed(name=array, ...) -> the JSON entries of the tensors that differ then."""

    def changed(other, *arguments):
        a, b = write("a.safetensors", WEIGHTS), write("b.safetensors", other)
        found = json.loads(diff(a, b, "--json", *arguments, status=1)[0])
        assert not found["equal"]
        return {one["name"]: one for one in found["tensors"] if not one["equal"]}

    return changed


def test_equal(write, diff):
    a = write("a.safetensors", WEIGHTS)
    b = write("b.safetensors", {name: array * (1 + 1e-12) for name, array in WEIGHTS.items()})
    out, err = diff(a, b)
    assert out.startswith("equal: 3 tensors; worst is ")
    assert (out.count("\n"), err) == (1, "")
    found = json.loads(diff(a, b, "--json")[0])
    assert list(found) == ["equal", "worst", "tensors"]
    assert found["worst"]["bound"] == 1e-10
    assert 0 < found["worst"]["error"] < 1e-11
    assert [one["name"] for one in found["tensors"]] == ["fc1.bias", "fc1.weight", "fc10.weight"]
    diff(a, b, "--exact", status=1)
    diff(a, b, "--bound", "1e-13", status=1)
    diff(a, a, "--exact")
    none = write("none.safetensors", {})
    assert diff(none, none)[0] == "equal: there are no tensors\n"


def test_bounds_go_by_the_type(write, diff):
    for dtype, right, wrong in ((np.float64, 1e-11, 1e-9), (np.float32, 3e-6, 3e-5), (np.float16, 4e-3, 3e-2)):
        a = {"w": np.ones(5, dtype)}
        b, c = ({"w": np.array([1, 1, 1, 1 + step, 1], dtype)} for step in (right, wrong))
        a, b, c = (write(f"{name}.safetensors", one) for name, one in zip("abc", (a, b, c)))
        diff(a, b)
        diff(a, c, status=1)
    whole = [write(f"{n}.safetensors", {"w": np.array([2**62 + n])}) for n in (0, 1)]
    diff(*whole, "--bound", 1, status=1)  # integers have no rounding


def test_the_report(write, diff):
    other = {**WEIGHTS, "fc1.weight": WEIGHTS["fc1.weight"] * 2, "new": np.zeros(3)}
    del other["fc10.weight"]
    a, b = write("a.safetensors", WEIGHTS), write("b.safetensors", other)
    out, _ = diff(a, b, status=1)
    assert out.splitlines() == [
        "DIFFERENT: 3 of 4 tensors; worst is fc10.weight, inf (bound 0e+00)",
        "first different, in the order of names: fc1.weight",
        "  fc1.weight   5.00e-01  B is 2 x A: counted twice",
        "  fc10.weight         -  only in A",
        "  new                 -  only in B",
    ]


def test_what_a_difference_is_called(changed):
    w, bias = WEIGHTS["fc1.weight"], WEIGHTS["fc1.bias"]

    def cause(**other):
        found = changed({**WEIGHTS, **{name.replace("_", "."): array for name, array in other.items()}})
        (one,) = found.values()
        return one["factor"], one["cause"]

    assert cause(fc1_weight=w * 3) == (
        pytest.approx(3),
        "B is 3 x A: a sum over 3 ranks too many, or a division missing",
    )
    assert cause(fc1_weight=w / 4) == (
        pytest.approx(0.25),
        "B is 0.25 x A: one share of 4, or a division by 4 too many",
    )
    assert cause(fc1_weight=-w) == (pytest.approx(-1), "B is -1 x A: the sign")
    assert cause(fc1_weight=w * 0) == (0, "B is zero")
    assert cause(fc1_weight=w * 1.7) == (pytest.approx(1.7), "B is 1.7 x A")
    assert cause(fc1_weight=w.T) == (
        None,
        "shape (6, 4) in A, (4, 6) in B: transposed, B is A with its axes in the order (1, 0)",
    )
    swapped = np.concatenate([w[3:], w[:3]])
    assert cause(fc1_weight=swapped) == (
        None,
        "slices out of place: B has A's 2 slices along axis 0 in the order 1, 0",
    )
    order = np.concatenate([w[:, 2:3], w[:, :2], w[:, 3:]], axis=1)
    assert cause(fc1_weight=order)[1].endswith("4 slices along axis 1 in the order 2, 0, 1, 3")
    assert cause(fc1_bias=bias + 1) == (None, "values")
    assert cause(fc1_bias=bias[:5])[1] == "shape (6,) in A, (5,) in B"
    assert cause(fc1_bias=bias.astype(np.float32))[1] == "float64 in A, float32 in B"
    assert cause(fc1_bias=np.full(6, np.nan)) == (None, "not all values are finite in B")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rounding_that_has_grown_is_told_where_it_may_be_all(write, diff, dtype):
    """Not in float64, nor where the difference has the look of a mistake."""
    w = RANDOM.random((6, 4)).astype(dtype)
    a, noisy = write("a.safetensors", {"w": w}), write("b.safetensors", {"w": w + RANDOM.random(w.shape).astype(dtype)})
    said = f"After some training in {np.dtype(dtype)}, two correct layouts may differ like this"
    assert (said in diff(a, noisy, status=1)[0]) == (dtype != np.float64)
    for wrong in (2 * w, w[::-1]):
        assert "After some training" not in diff(a, write("c.safetensors", {"w": wrong}), status=1)[0]


def test_a_square_matrix_that_is_transposed(write, diff):
    w = RANDOM.random((4, 4))
    a, b = write("a.safetensors", {"w": w}), write("b.safetensors", {"w": w.T})
    assert "transposed: B is A with its axes in the order (1, 0)" in diff(a, b, status=1)[0]


def test_the_example_of_the_page(write, diff):
    weight, bias = np.arange(1.0, 13).reshape(4, 3), np.arange(1.0, 5)
    ours = {"fc1.weight": weight, "fc1.bias": bias, "fc2.weight": weight.T, "fc2.bias": bias}
    theirs = {"fc1.weight": np.roll(weight, 2, 0), "fc1.bias": 2 * bias, "fc2.weight": weight.T}
    out, _ = diff(write("ours.safetensors", ours), write("theirs.safetensors", theirs), status=1)
    page = (ROOT / "docs" / "command-line.md").read_text()
    assert f"$ parallel-dl diff ours.safetensors theirs.safetensors\n{out}" in page


def test_a_placement_of_no_tensor(tmp_path, capsys):
    for name in "ab":
        checkpoint.save(tmp_path / name, {"fc1.bias": np.zeros(3)}, {})
    (tmp_path / "place.json").write_text('{"fc9.bias": 0}')
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    flags = ("--placement", str(tmp_path / "place.json"))
    assert main(["diff", f"{a},{a}", b, *flags]) == 2
    said = "parallel-dl: --placement: unknown tensor 'fc9.bias': did you mean 'fc1.bias'? expected fc1.bias\n"
    assert capsys.readouterr().err == said
    assert main(["diff", a, b, *flags]) == 2  # would be ignored
    assert "place.json: each side is one file; valid only where a side has several" in capsys.readouterr().err


def test_the_example_of_a_placement():
    path = ROOT / "docs" / "examples" / "placement.toml"
    assert path.read_text() in (ROOT / "docs" / "command-line.md").read_text()
    placement = read_placement(str(path))
    assert placement == {
        "fc1.weight": 0,
        "fc1.bias": 0,
        "fc2.weight": 1,
        "fc2.bias": "replicated",
        "conv*.weight": "sum",
    }
    assert place_of("conv2.weight", placement) == "sum"
    assert place_of("conv2.bias", placement) is None


PLACEMENT = {"fc1.weight": 0, "fc10.weight": 1, "*.bias": "replicated", "norm": "sum"}


@pytest.fixture
def shards(write, tmp_path):
    """(the whole file, the two ranks' files, a placement file)."""
    norm = RANDOM.random(3)
    whole = write("whole.safetensors", {**WEIGHTS, "norm": norm})
    paths = []
    for rank, (rows, columns) in enumerate([(slice(0, 4), slice(0, 1)), (slice(4, 6), slice(1, 6))]):
        own = {
            "fc1.weight": WEIGHTS["fc1.weight"][rows],
            "fc10.weight": WEIGHTS["fc10.weight"][:, columns],
            "fc1.bias": WEIGHTS["fc1.bias"],
            "norm": norm * [0.25, 0.75][rank],
        }
        paths.append(write(f"ranks/rank{[9, 10][rank]}.safetensors", own))
    placement = tmp_path / "placement.json"
    placement.write_text(json.dumps(PLACEMENT))
    return whole, paths, placement


def test_shards(shards, diff, tmp_path):
    whole, paths, placement = shards
    diff(whole, ",".join(paths), "--placement", placement)
    diff(tmp_path / "ranks", whole, "--placement", placement)  # rank 10 comes after rank 9
    out, _ = diff(whole, ",".join(reversed(paths)), "--placement", placement, status=1)
    assert "fc1.weight" in out
    toml = tmp_path / "placement.toml"
    toml.write_text('fc1.weight = 0\n"fc10.*" = 1\nnorm = "sum"\n')  # the bias is equal in both: it needs no line
    diff(whole, ",".join(paths), "--placement", toml)


def test_replicas_that_differ(shards, diff, write):
    whole, paths, placement = shards
    own = dict(checkpoint.load(paths[1]))
    write("ranks/rank10.safetensors", {**own, "fc1.bias": own["fc1.bias"] + 1})
    out, _ = diff(whole, ",".join(paths), "--placement", placement, status=1)
    assert "fc1.bias         -  in B replicas differ: file 1 of 2 has not what file 0 has" in out


def test_bad_input(shards, diff, write, tmp_path):
    whole, paths, placement = shards
    both = ",".join(paths)

    def refused(*arguments):
        out, err = diff(*arguments, status=2)
        assert (out, err.count("\n")) == ("", 1)
        return err

    assert "no.safetensors: no such file" in refused(whole, "no.safetensors")
    assert "--exact and --bound: only one of them" in refused(whole, whole, "--exact", "--bound", 1)
    assert "--bound nan: must be a finite number" in refused(whole, whole, "--bound", "nan")
    assert "is not the same in 2 files; give its axis, or 'sum', in --placement" in refused(whole, both)
    (tmp_path / "empty").mkdir()
    assert "empty: has no files *.safetensors" in refused(whole, tmp_path / "empty")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"no tensors")
    assert "damaged.safetensors: " in refused(whole, damaged)
    for text, said in (
        ("{", "Expecting property name"),
        ("[1]", "expected a placement, name to axis"),
        ('{"norm": "mean"}', "norm = 'mean'; expected an axis, 'sum' or 'replicated'"),
        ('{"norm": true}', "norm = true; expected an axis"),
        (json.dumps({**PLACEMENT, "fc1.weight": 2}), "fc1.weight = 2 does not fit the shapes (4, 4), (2, 4): "),
        (json.dumps({**PLACEMENT, "fc10.weight": "sum"}), "fc10.weight = 'sum' does not fit the shapes"),
    ):
        placement.write_text(text)
        assert said in refused(whole, both, "--placement", placement)
    assert "--placement no.toml: no such file" in refused(whole, both, "--placement", "no.toml")


def test_gradients_of_a_torch_network(write, diff, tmp_path):
    """Weights go from us to PyTorch, gradients come back; a loss that is summed over 5 samples is named."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed (the extra bench)")
    from safetensors.torch import save_file as save_torch

    x, y = RANDOM.standard_normal((5, 4)), RANDOM.integers(0, 3, 5)
    ours = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).initialize(0, "float64")
    nn.cross_entropy(ours(x), y).backward()
    a = write("ours.safetensors", {name: parameter.grad for name, parameter in ours.named_parameters()})

    theirs = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in ours.state_dict().items()})
    for reduction, status in (("mean", 0), ("sum", 1)):
        theirs.zero_grad()
        loss = torch.nn.functional.cross_entropy(theirs(torch.from_numpy(x)), torch.from_numpy(y), reduction=reduction)
        loss.backward()
        b = tmp_path / f"{reduction}.safetensors"
        save_torch({name: parameter.grad for name, parameter in theirs.named_parameters()}, b)
        out, _ = diff(a, b, status=status)
    assert "B is 5 x A: a sum over 5 ranks too many, or a division missing" in out
    half = tmp_path / "half.safetensors"
    save_torch({"0.weight": theirs[0].weight.detach().bfloat16()}, half)
    assert "has values of a type unknown to NumPy" in diff(a, half, status=2)[1]
