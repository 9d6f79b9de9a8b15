"""Training programs as functions, for `assert_same_program`: each process imports this file, and calls one of them."""

import numpy as np

from parallel_dl import datasets, nn, optim
from parallel_dl.data_parallel import GradientAllReduce
from parallel_dl.equivalence import watch
from parallel_dl.mesh import Shard
from parallel_dl.mpi import world


def right(total=None):
    """Two epochs of four batches, the last one smaller; each rank has its share."""
    comm, random = world(), np.random.default_rng(0)
    x, y = random.standard_normal((25, 6)), random.integers(0, 3, 25)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    model.initialize(1, "float64")
    gradients = GradientAllReduce(model.parameters(), comm)
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    loader = datasets.Loader(x, y, batch_size=7, seed=7, rank=comm.rank, ranks=comm.size)
    for epoch in range(2):
        for batch in loader.epoch(epoch):
            scores = model(batch.x)
            watch("scores", scores, Shard(0))
            loss = nn.cross_entropy(scores, batch.y, total=total or batch.size)
            optimizer.zero_grad()
            loss.backward()
            gradients.all_reduce()
            optimizer.step()


def wrong():
    """Divides by the size of the largest batch, but on several ranks by that of a share of it."""
    right(total=7 / world().size)
