"""Any state comes back from a file as it was; whatever prevents writing or reading it is one line."""

import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from parallel_dl import checkpoint, nn, optim
from parallel_dl.errors import InputError

DTYPES = ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8", ">f4", ">i8"]


def same(a, b):
    """Types, order and bits."""
    if isinstance(a, np.ndarray | np.generic):
        native = a.dtype.newbyteorder("=")
        assert type(a) is type(b)
        assert (native, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).astype(native).tobytes() == np.asarray(b).tobytes()
    elif isinstance(a, dict):
        assert type(b) is dict
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert (type(a), len(a)) == (type(b), len(b))
        for x, y in zip(a, b):
            same(x, y)
    else:
        assert type(a) is type(b)
        assert a == b or (a != a and b != b)


arrays = st.sampled_from(DTYPES).flatmap(lambda t: hnp.arrays(np.dtype(t), hnp.array_shapes(min_dims=0, min_side=0)))
numbers = st.sampled_from([np.float32(1.1), np.float64(-0.0), np.int64(-3), np.bool_(True), np.uint8(9)])
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
names = st.text(max_size=4) | st.sampled_from(["a", "a.b", "b", "0", "__metadata__", "\ud800", "a#0"])
states = st.recursive(
    arrays | numbers | plain,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(names, inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=100)
@given(state=st.dictionaries(names, states, max_size=4))
def test_any_state_comes_back(tmp_path_factory, state):
    path = tmp_path_factory.mktemp("state") / "a"
    checkpoint.save(path, state)
    found = checkpoint.load(path)
    if all(isinstance(value, np.ndarray) for value in state.values()):  # arrays by name have no order
        found = {name: found[name] for name in state}
    same(state, found)


def test_arrays_in_any_memory_order(tmp_path):
    x = np.arange(24.0).reshape(2, 3, 4)
    state = {"a": x.T, "b": [x[:, ::2], x[::-1]], "c": np.asfortranarray(x)}
    checkpoint.save(tmp_path / "a", state)
    same(state, checkpoint.load(tmp_path / "a"))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
        lambda p: optim.Adam(p, 0.01),
        lambda p: optim.AdamW(p, 0.01),
        lambda p: optim.LARS(p, 1.0),
    ],
    ids=["sgd", "adam", "adamw", "lars"],
)
def test_an_optimizer_goes_on_bit_by_bit(tmp_path, make):
    """Three steps, saved, loaded into another optimizer, three steps more: the weights of six steps."""
    random = np.random.default_rng(0)
    x, y = random.standard_normal((30, 4)), random.integers(0, 3, 30)

    def start(seed):
        network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).initialize(seed, "float64")
        return network, make(network.parameters())

    def steps(network, optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            nn.cross_entropy(network(x), y).backward()
            optimizer.step()

    network, optimizer = start(0)
    steps(network, optimizer)
    checkpoint.save(tmp_path / "network", network.state_dict())
    checkpoint.save(tmp_path / "optimizer", optimizer.state_dict())
    steps(network, optimizer)
    other, of_other = start(1)
    other.load_state_dict(checkpoint.load(tmp_path / "network"))
    of_other.load_state_dict(checkpoint.load(tmp_path / "optimizer"))
    steps(other, of_other)
    for name, array in network.state_dict().items():
        assert array.tobytes() == other.state_dict()[name].tobytes()


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"a": {"b": object()}}, "'a.b' is of type object; expected"),
        ({"a": [1, {2}]}, "'a.1' is of type set"),
        ({"a": {1: 2}}, "'a' has the key 1; expected a string"),
        ({1: np.ones(2)}, "the state has the key 1"),
        ({"a": np.array(["x"])}, "'a' is of type <U1"),
        ({"a": np.array([None])}, "'a' is of type object"),
        ({"a": np.longdouble(1)}, "'a' is of type"),
        ({"a": np.zeros(2, [("x", "i4")])}, "'a' is of type"),
        ({"x" * 500: 1j}, "is of type complex"),
    ],
)
def test_what_a_file_does_not_hold(tmp_path, state, said):
    with pytest.raises(InputError) as caught:
        checkpoint.save(tmp_path / "a", state)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 300
    assert os.listdir(tmp_path) == []


def test_a_circle_ends(tmp_path):
    state = {}
    state["again"] = state
    with pytest.raises(InputError, match="nested too deeply"):
        checkpoint.save(tmp_path / "a", state)


@pytest.mark.parametrize("error", [RuntimeError("inside"), OSError(28, "No space left"), MemoryError()])
def test_every_failure_of_the_format_is_one_input_error(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    (tmp_path / "a").write_text("old")
    monkeypatch.setattr("safetensors.numpy.save", fail)
    with pytest.raises(InputError, match="a: cannot be written"):
        checkpoint.save(tmp_path / "a", {"a": np.ones(2)})
    assert (tmp_path / "a").read_text() == "old"


def test_facts_that_are_no_json(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        checkpoint.save(tmp_path / "a", {"a": np.ones(2)}, {"a": object()})


def test_no_flag_is_blamed_in_own_programs(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "damaged").write_bytes(b"no tensors")
    (tmp_path / "header").write_bytes(struct.pack("<Q", 10**15) + b"{}")
    network = nn.Sequential(nn.Linear(2, 3)).initialize()
    for call in (checkpoint.load, checkpoint.read, lambda path: checkpoint.require_fits(path, network)):
        for name in (".", "no", "pipe", "damaged", "header"):
            with pytest.raises(InputError) as caught:
                call(tmp_path / name)
            assert str(caught.value).startswith(f"{tmp_path / name}: ")
    with pytest.raises(InputError, match="is a folder; expected a safetensors file"):
        checkpoint.load(tmp_path)
    checkpoint.save(tmp_path / "other", {"0.weight": np.ones((3, 3))})
    with pytest.raises(InputError) as caught:
        checkpoint.require_fits(tmp_path / "other", network)
    assert str(caught.value).startswith(f"{tmp_path / 'other'}: 0.weight has shape")


@pytest.mark.parametrize(
    "structure",
    [
        "",
        "[",
        "[]",
        '["dict"]',
        '["dict", 3]',
        '["what", 1]',
        '["array", "no"]',
        '["int", "x"]',
        '["list", []]',
        "[" * 9999,
    ],
)
def test_a_damaged_structure_is_a_line(tmp_path, structure):
    from safetensors.numpy import save_file

    save_file({"a": np.ones(2)}, tmp_path / "a", {"parallel_dl.structure": structure})
    with pytest.raises(InputError, match="its structure is damaged"):
        checkpoint.load(tmp_path / "a")


def test_weights_by_name_are_readable_by_everyone(tmp_path):
    """A network's state has no structure beside its names; what it replaces is replaced whole."""
    from safetensors import safe_open

    checkpoint.save(tmp_path / "a", {"x": [1, np.ones(3)]})
    checkpoint.save(tmp_path / "a", {"fc.weight": np.ones((2, 3))}, {"steps": 3})
    with safe_open(tmp_path / "a", "numpy") as file:
        assert (list(file.keys()), file.metadata()) == (["fc.weight"], {"parallel_dl": '{"steps": 3}'})
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("state", [[1, 2], (1, 2), np.ones(3), 5, None, "x"])
def test_states_that_are_not_dictionaries_are_refused(tmp_path, state):
    with pytest.raises(InputError, match="cannot be saved; expected a dict, as state_dict"):
        checkpoint.save(tmp_path / "w", state)
    assert not list(tmp_path.iterdir())
