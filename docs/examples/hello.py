"""Your own training loop: run it as `python hello.py` or as `mpirun -n 2 python hello.py`."""

from parallel_dl import datasets, nn, optim
from parallel_dl.data_parallel import GradientAllReduce
from parallel_dl.mpi import world

comm = world()
digits = datasets.load("digits")
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, digits.classes))
gradients = GradientAllReduce(model.parameters(), comm)
optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
loader = datasets.Loader(digits.x_train, digits.y_train, batch_size=64, seed=7, rank=comm.rank, ranks=comm.size)
for epoch in range(10):
    for batch in loader.epoch(epoch):
        loss = nn.cross_entropy(model(batch.x), batch.y, total=batch.size)
        optimizer.zero_grad()
        loss.backward()
        gradients.all_reduce()
        optimizer.step()
    mean = comm.all_reduce(loss.data)
    if comm.rank == 0:
        print(f"epoch {epoch}  loss {mean:.6f}")
