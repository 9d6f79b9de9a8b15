"""Known bugs of parallel programs, planted one at a time: does the proof catch each, and name it?

Every mutant exchanges a function of the package for a wrong one while it is planted; the package itself has no
switches. A serial run stays right: only what ranks do together, or what a rank is given, is wrong. To read in this
order:

    mutant.py             what a planted bug is
    networks.py           what bugs are planted in
    data_parallel.py      shares, sums over the replicas, masks
    model_parallel.py     sums between split layers, shards, halo rows
    pipeline_parallel.py  what stages send, and which weights they compute with
    hybrid.py             parts of several shares
    calls.py              calls that differ between the ranks, which checked mode refuses
    state.py              weights, gradients and layers that one rank alone changes, which the all-reduce refuses
    verdicts.py           caught, and named?
"""

from __future__ import annotations

from collections.abc import Sequence

from parallel_dl.equivalence.mutants import calls, data_parallel, hybrid, model_parallel, pipeline_parallel, state
from parallel_dl.equivalence.mutants.mutant import RANKS, Mutant, Plant, planted, replaced
from parallel_dl.equivalence.mutants.networks import NETWORKS, experiments
from parallel_dl.equivalence.mutants.verdicts import Verdict, noise_of_mutants, verdicts
from parallel_dl.errors import unknown_name

MUTANTS: tuple[Mutant, ...] = (
    *data_parallel.MUTANTS,
    *model_parallel.MUTANTS,
    *pipeline_parallel.MUTANTS,
    *hybrid.MUTANTS,
    *calls.MUTANTS,
    *state.MUTANTS,
)


def mutants_of(name: str | None, among: Sequence[Mutant] = MUTANTS) -> Sequence[Mutant]:
    """The mutant of this name, or all of them; InputError for an unknown name."""
    named = {mutant.name: mutant for mutant in among}
    if name is not None and name not in named:
        raise unknown_name("`mutant`", name, list(named))
    return among if name is None else [named[name]]


__all__ = [
    "MUTANTS",
    "NETWORKS",
    "RANKS",
    "Mutant",
    "Plant",
    "Verdict",
    "experiments",
    "mutants_of",
    "noise_of_mutants",
    "planted",
    "replaced",
    "verdicts",
]
