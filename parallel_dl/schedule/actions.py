"""Actions, programs and plans: one training step as data.

An action is written as stage, kind, microbatch: `2F0` is the forward pass of microbatch 0 on stage 2. The kinds:

| compute |                                                        | messages |                                        |
|---------|--------------------------------------------------------|----------|----------------------------------------|
| `F`     | forward                                                | `SF`     | send the activation to the next stage  |
| `B`     | backward, of input and weights                         | `RF`     | receive it from the stage before       |
| `I`     | backward of the input: what the stage before waits for | `SB`     | send the gradient to the stage before  |
| `W`     | backward of the weights, at any time after `I`         | `RB`     | receive it from the next stage         |
| `R`     | recompute the forward pass, before its backward        |          |                                        |
| `U`     | update of the weights                                  |          |                                        |

| collectives |                                                                               |
|-------------|-------------------------------------------------------------------------------|
| `AR`        | all-reduce of gradients: its completion; parts of it may start inside `B`      |
| `RS`        | reduce-scatter of gradients                                                   |
| `AG`        | all-gather of weights                                                         |

The stage of a message is that of the rank that does it: `2SF0` is received by `3RF0`. `U` and the collectives may leave
out the microbatch when they are for the whole batch, and the stage when they are for all weights of the rank: serial
training is `0F0 0B0 U`. An action may name a sub-batch of its microbatch, `1F0:2`, and a unit of its stage's layers,
`0:3AG`. A stage that several ranks compute is replicated over them, and they meet in its collectives; sub-batches are
exchanged among them (see `one_weird_trick`).

The letters are those of PyTorch's pipeline schedules (torch.distributed.pipelining), whose messages are SEND_F, RECV_F,
SEND_B and RECV_B.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from parallel_dl.errors import InputError

COMPUTE = ("F", "B", "I", "W", "R", "U")
MESSAGES = ("SF", "RF", "SB", "RB")
COLLECTIVES = ("AR", "RS", "AG")
KINDS = COMPUTE + MESSAGES + COLLECTIVES
SENDS, RECEIVES = ("SF", "SB"), ("RF", "RB")
GRADIENTS = ("B", "I")  # either makes the gradient of the stage's input
REDUCTIONS = ("AR", "RS")  # either sums the gradients of the weights
OF_STEP = ("U", *COLLECTIVES)  # may be without microbatch, and without stage
ALL = -1  # every microbatch; every stage of the rank; no particular sub-batch or unit

MEANINGS = {
    "F": "forward",
    "B": "backward",
    "I": "backward of the input",
    "W": "backward of the weights",
    "R": "recompute",
    "U": "update",
    "SF": "send an activation",
    "RF": "receive it",
    "SB": "send a gradient",
    "RB": "receive it",
    "AR": "all-reduce gradients",
    "RS": "reduce-scatter gradients",
    "AG": "all-gather weights",
}
"""of the kinds, in a few words"""

_PYTORCH = {"SEND_F": "SF", "RECV_F": "RF", "SEND_B": "SB", "RECV_B": "RB"}
_PARTNERS = {"SF": (1, "RF"), "RF": (-1, "SF"), "SB": (-1, "RB"), "RB": (1, "SB")}  # stage relative to ours, kind
_NUMBER = "[0-9]{1,6}"
_ACTION = re.compile(
    f"(?:(?P<stage>{_NUMBER})(?::(?P<unit>{_NUMBER}))?)?(?P<kind>[A-Z_]+)"
    f"(?:(?P<microbatch>{_NUMBER})(?::(?P<sub_batch>{_NUMBER}))?)?"
)


class PlanError(InputError):
    """A plan that cannot be read, or an unknown schedule; one line says why."""


class Action(NamedTuple):
    """One thing that a rank does: an action of this kind (F, B, ...) on a stage.

    It may apply to one `microbatch`, one `sub_batch` of it, or one `unit` of layers; the default is `ALL`.
    """

    stage: int
    kind: str
    microbatch: int = ALL
    sub_batch: int = ALL
    unit: int = ALL

    def __str__(self) -> str:
        stage, unit, microbatch, sub_batch = (
            "" if number == ALL else f"{mark}{number}"
            for number, mark in ((self.stage, ""), (self.unit, ":"), (self.microbatch, ""), (self.sub_batch, ":"))
        )
        return f"{stage}{unit}{self.kind}{microbatch}{sub_batch}"

    @classmethod
    def parse(cls, text: str) -> Action:
        """From a text like "2F0", or PyTorch's "2SEND_F0"; PlanError for anything else."""
        found = _ACTION.fullmatch(text.strip())
        kind = _PYTORCH.get(found["kind"], found["kind"]) if found else ""
        if found is None or kind not in KINDS or (None in found.group("stage", "microbatch") and kind not in OF_STEP):
            raise PlanError(
                f"{text.strip()[:40]!r} is not an action: expected stage, kind and microbatch, like 2F0; "
                f"kinds are {', '.join(KINDS)}"
            )
        stage, *others = (
            ALL if number is None else int(number) for number in found.group("stage", "microbatch", "sub_batch", "unit")
        )
        return cls(stage, kind, *others)

    @property
    def is_message(self) -> bool:
        """Whether it sends or receives."""
        return self.kind in MESSAGES

    @property
    def partner(self) -> Action:
        """The receive of a send, and the send of a receive; KeyError for anything else."""
        distance, kind = _PARTNERS[self.kind]
        return self._replace(stage=self.stage + distance, kind=kind)


Program = tuple[Action, ...]
"""one rank's actions, in order"""


@dataclass(frozen=True)
class Plan:
    """The programs of all ranks. Ranks that split the same layers do every action together and count as one."""

    name: str
    programs: tuple[Program, ...]
    blocking: bool = False
    """whether a send may block until it is received, like MPI_Send, or never does, like MPI_Isend. Exchanges of
    sub-batches never block"""

    @property
    def ranks(self) -> int:
        """The number of ranks."""
        return len(self.programs)

    @property
    def pp(self) -> int:
        """The number of ranks that share one copy of the stages."""
        return self.ranks // max(1, *map(len, self.owners.values())) if self.owners else self.ranks

    @cached_property
    def stages(self) -> int:
        """The number of stages."""
        return 1 + max((action.stage for _, action in self.actions()), default=-1)

    @cached_property
    def microbatches(self) -> int:
        """The number of microbatches."""
        return 1 + max((action.microbatch for _, action in self.actions()), default=-1)

    @cached_property
    def has_messages(self) -> bool:
        """Whether it contains any send or receive."""
        return any(action.is_message for _, action in self.actions())

    @cached_property
    def is_asynchronous(self) -> bool:
        """Whether a stage of a pipeline is updated before all microbatches are done, unlike in a serial run."""
        return any(
            action.kind == "U" and action.microbatch != ALL and action.sub_batch == ALL for _, action in self.actions()
        )

    # -- who is where ----------------------------------------------------------------------------------------------
    @cached_property
    def owners(self) -> dict[int, tuple[int, ...]]:
        """Stage -> the ranks that compute it, lowest first."""
        ranks: dict[int, dict[int, None]] = {}
        for rank, action in self.actions():
            if action.kind in COMPUTE and action.stage != ALL:
                ranks.setdefault(action.stage, {})[rank] = None
        return {stage: tuple(of_stage) for stage, of_stage in ranks.items()}

    @cached_property
    def rank_of(self) -> dict[int, int]:
        """Stage -> the rank that computes it; the first one if it is replicated."""
        return {stage: ranks[0] for stage, ranks in self.owners.items()}

    @cached_property
    def stages_of(self) -> tuple[tuple[int, ...], ...]:
        """The stages that each rank computes, by rank."""
        own: list[list[int]] = [[] for _ in self.programs]
        for stage in sorted(self.owners):
            for rank in self.owners[stage]:
                own[rank].append(stage)
        return tuple(map(tuple, own))

    def peers(self, rank: int, action: Action) -> tuple[int, ...]:
        """The other ranks involved in this action of `rank`: those it sends to, receives from, or meets.

        In a replicated stage, the i-th rank exchanges messages with the i-th rank of the neighbouring stage; a
        sub-batch goes from each rank to all others.
        """
        if action.kind in COLLECTIVES:
            if action.stage == ALL:
                group = self._alike[self.stages_of[rank]]
            else:
                group = self.owners.get(action.stage, ())
        elif action.kind in MESSAGES:
            here, group = self.owners.get(action.stage, ()), self.owners.get(action.partner.stage, ())
            if action.sub_batch == ALL and rank in here and len(here) == len(group):
                return (group[here.index(rank)],)
        else:
            return ()
        return tuple(other for other in group if other != rank)

    @cached_property
    def _alike(self) -> dict[tuple[int, ...], tuple[int, ...]]:
        """Stages -> the ranks that have exactly these."""
        return {own: tuple(r for r, other in enumerate(self.stages_of) if other == own) for own in set(self.stages_of)}

    # -- the whole -------------------------------------------------------------------------------------------------
    def actions(self) -> Iterator[tuple[int, Action]]:
        """(rank, action) for all actions, rank by rank."""
        for rank, program in enumerate(self.programs):
            for action in program:
                yield rank, action

    def lines(self) -> list[str]:
        """The text form: a line for each rank, actions separated by blanks."""
        return [" ".join(map(str, program)) for program in self.programs]


def plan_of(name: str, programs: Sequence[Sequence[Sequence[int | str]]]) -> Plan:
    """A plan from (stage, kind, microbatch), a sequence for each rank."""
    return Plan(name, tuple(tuple(Action(*action) for action in program) for program in programs))  # type: ignore[arg-type]
