"""Two phases, two learning rates and an averaged copy: run it as `python fine_tuning.py` or on several ranks."""

import copy
import os
import tempfile

from parallel_dl import checkpoint, datasets, nn, optim
from parallel_dl.data_parallel import GradientAllReduce
from parallel_dl.mpi import world

comm = world()
digits = datasets.load("digits")
body = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh())
head = nn.Linear(64, digits.classes)
model = nn.Sequential(body=body, head=head).initialize(seed=7)
average = copy.deepcopy(model)  # an independent network: no optimizer updates it, no all-reduce sums its gradients

for parameter in body.parameters():
    parameter.requires_grad = False
gradients = GradientAllReduce(model.parameters(), comm)  # frozen ones are summed once they are unfrozen
groups = [{"params": body.parameters(), "lr": 0.01}, {"params": head.parameters()}]
optimizer = optim.Adam(groups, lr=0.003)

loader = datasets.Loader(digits.x_train, digits.y_train, batch_size=64, seed=7, rank=comm.rank, ranks=comm.size)
for epoch in range(4):
    if epoch == 2:
        for parameter in body.parameters():
            parameter.requires_grad = True
    for batch in loader.epoch(epoch):
        loss = nn.cross_entropy(model(batch.x), batch.y, total=batch.size)
        optimizer.zero_grad()
        loss.backward()
        gradients.all_reduce()
        optimizer.step()
        for slow, fast in zip(average.parameters(), model.parameters()):
            slow.data = 0.9 * slow.data + 0.1 * fast.data
    mean = comm.all_reduce(loss.data)
    if comm.rank == 0:
        print(f"epoch {epoch}  loss {mean:.6f}")

# another optimizer of the same parameters, in the same order, continues from the state in a file
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "adam.safetensors")
    checkpoint.save(path, optimizer.state_dict())
    again = optim.Adam(groups, lr=0.003)
    again.load_state_dict(checkpoint.load(path))
assert again.updates_of() == optimizer.updates_of()

right = (average(digits.x_test).data.argmax(axis=1) == digits.y_test).mean()
if comm.rank == 0:
    print(f"updates of the body {again.updates_of()[0]}, of the head {again.updates_of()[-1]}")
    print(f"test accuracy of the average {right:.2%}")
