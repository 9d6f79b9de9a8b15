"""A test marked ranks can start a process group of its own beside MPI, one after the other in the same ranks."""

import numpy as np
import pytest

from parallel_dl.data_parallel import GradientAllReduce
from parallel_dl.nn import Linear, Sequential, cross_entropy

torch = pytest.importorskip("torch", reason="starts process groups of PyTorch, which is not installed (extra bench)")
distributed = torch.distributed
if not distributed.is_available() or not distributed.is_gloo_available():
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)


@pytest.fixture
def gloo(comm, tmp_path):
    file = comm.broadcast_object(str(tmp_path / "ranks"))  # rank 0's, for all
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=comm.rank, world_size=comm.size)
    yield torch.distributed
    torch.distributed.destroy_process_group()


@pytest.mark.ranks(2)
@pytest.mark.parametrize("turn", [1, 2])
def test_all_reduce(gloo, turn):
    values = torch.ones(3)
    gloo.all_reduce(values)
    assert values.tolist() == [2, 2, 2]


@pytest.mark.ranks(2)
def test_the_group_is_gone(comm):
    assert not distributed.is_initialized()


@pytest.mark.ranks(2)
def test_a_port_that_rank_0_has_found(comm):
    """Without a file: the store listens on a free port, whose number goes round."""
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if comm.rank == 0 else None
    port = comm.broadcast_object(store.port if store is not None else None)
    store = store or distributed.TCPStore("127.0.0.1", port, is_master=False)
    distributed.init_process_group("gloo", store=store, rank=comm.rank, world_size=comm.size)
    values = torch.ones(2)
    distributed.all_reduce(values)
    distributed.destroy_process_group()
    assert values.tolist() == [comm.size] * 2
    comm.barrier()  # rank 0 has the store


@pytest.mark.ranks(2)
def test_summed_gradients_are_pytorchs_averaged_ones(comm, gloo):
    """What DistributedDataParallel does: with equal shares, the mean of the ranks' means is that of the batch."""
    random = np.random.default_rng(0)
    x, y = random.standard_normal((6, 4)), random.integers(0, 3, 6)
    own = slice(3 * comm.rank, 3 * comm.rank + 3)
    ours = Sequential(Linear(4, 3)).initialize(0, "float64")
    gradients = GradientAllReduce(ours.parameters(), comm)
    cross_entropy(ours(x[own]), y[own], total=6).backward()
    gradients.all_reduce()

    theirs = torch.nn.Sequential(torch.nn.Linear(4, 3)).double()
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in ours.state_dict().items()})
    loss = torch.nn.functional.cross_entropy(theirs(torch.from_numpy(x[own])), torch.from_numpy(y[own]))
    loss.backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        gloo.all_reduce(other.grad)
        other.grad /= comm.size
        np.testing.assert_allclose(mine.grad, other.grad.numpy(), rtol=1e-12, atol=1e-15)
    gradients.free()
