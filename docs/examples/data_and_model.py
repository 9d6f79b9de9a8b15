"""Data and model parallelism in one loop: run it as `python data_and_model.py` or on 4 ranks, as 2 x 2."""

import numpy as np

from parallel_dl import datasets, networks, nn, optim
from parallel_dl.data_parallel import GradientAllReduce
from parallel_dl.model_parallel import parallelize
from parallel_dl.mpi import Mesh, world

comm = world()
model_ranks = 2 if comm.size % 2 == 0 else 1
mesh = Mesh(comm, data=comm.size // model_ranks, model=model_ranks)
digits = datasets.load("digits")

# in this order: parallelize replaces the weights, and the others keep references to them
network = networks.MLP(digits.input_shape, digits.classes).initialize(seed=7, fill=False)
parallel = parallelize(network, mesh.model, digits.input_shape)  # the ranks of one replica: same samples
gradients = GradientAllReduce(network.parameters(), mesh.data)  # the replicas: same weights
optimizer = optim.SGD(network.parameters(), lr=0.1, momentum=0.9)

loader = datasets.Loader(
    digits.x_train, digits.y_train, batch_size=64, seed=7, rank=mesh.data.rank, ranks=mesh.data.size
)
loss_of = parallel.loss(nn.cross_entropy)  # the scores are split by class
for epoch in range(10):
    for step, batch in enumerate(loader.epoch(epoch), start=epoch * len(loader)):
        network.train().set_position(step, batch.first)  # what dropout depends on
        loss = loss_of(network(batch.x), batch.y, batch.size)
        optimizer.zero_grad()
        loss.backward()
        gradients.all_reduce()
        optimizer.step()
    mean = mesh.data.all_reduce(parallel.whole_loss(nn.cross_entropy, loss.data))
    if comm.rank == 0:
        print(f"epoch {epoch}  loss {mean:.6f}")

scores = parallel.whole_output(network.eval()(digits.x_test).data)
right = np.mean(scores.argmax(axis=1) == digits.y_test)
if comm.rank == 0:
    print(f"test accuracy {right:.2%}")
