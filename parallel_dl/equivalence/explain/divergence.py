"""Where a parallel run diverges from the serial one: the first tensor that differs, its rank, its factor, and why.

Both runs are traced at the step in which they diverge; `search` compares the traces.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from parallel_dl.equivalence.compare.runs import first_different_step
from parallel_dl.equivalence.explain.search import Divergence, Search
from parallel_dl.equivalence.explain.trace import Trace, trace
from parallel_dl.equivalence.runs.record import Experiment, Run
from parallel_dl.layout import Layout
from parallel_dl.mpi import Mesh, one_rank


def first_divergence(
    experiment: Experiment,
    layout: Layout,
    mesh: Mesh,
    serial: Run | None,
    parallel: Run,
    exact: bool = False,
    alone: Mapping[int, Trace] | None = None,
    allreduce: str | Mapping[str, Any] = "auto",
    bound: float | None = None,
) -> Divergence | None:
    """Reruns both and finds where they diverge; returned on rank 0, None on the others and if nothing is found.

    `bound` and `exact` are those of the comparison: they decide which step is the first that differs.

    All ranks call it together; `serial`, and `alone`, the serial traces by step if there are any already, are needed on
    rank 0 only. What makes the runs differ must be deterministic.
    """
    if layout.reproducible:  # its samples are in other shares, and its gradients in leaves
        return None
    step = None if serial is None else first_different_step(serial, parallel, bound, exact)
    step = mesh.world.broadcast_object(step)
    found = None
    for number in range(experiment.steps) if step is None else (step,):  # replicas differ, but not rank 0: look at all
        traces = mesh.world.all_gather_object(trace(experiment, layout, mesh, number, allreduce))
        if mesh.world.rank == 0:
            try:
                if alone is None:
                    with one_rank():
                        serially = trace(experiment, Layout(microbatches=layout.microbatches), Mesh.serial(), number)
                else:
                    serially = alone[number]
                found = Search(experiment, layout, number, serially, traces, serial, parallel).first()
            except Exception as error:  # the other ranks wait, and that the runs differ is known already
                words = f"where the runs part was not found: the search ends with {type(error).__name__}: {error}"
                warnings.warn(words, stacklevel=2)
        if mesh.world.broadcast_object(found is not None):
            break
    return found
