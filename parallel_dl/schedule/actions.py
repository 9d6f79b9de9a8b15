"""Actions and plans: one pipelined step as data.

An action is written as stage, kind, microbatch: `2F0` is the forward pass of microbatch 0 on stage 2. The kinds:

| compute |                                                        | messages |                                        |
|---------|--------------------------------------------------------|----------|----------------------------------------|
| `F`     | forward                                                | `SF`     | send the activation to the next stage  |
| `B`     | backward, of input and weights                         | `RF`     | receive it from the stage before       |
| `I`     | backward of the input: what the stage before waits for | `SB`     | send the gradient to the stage before  |
| `W`     | backward of the weights, at any time after `I`         | `RB`     | receive it from the next stage         |
| `U`     | update of the stage's weights after that microbatch    |          |                                        |

The stage of a message is that of the rank that does it: `2SF0` is received by `3RF0`. The letters are those of
PyTorch's pipeline schedules (torch.distributed.pipelining), whose messages are SEND_F, RECV_F, SEND_B and RECV_B.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from parallel_dl.errors import InputError

COMPUTE = ("F", "B", "I", "W", "U")
MESSAGES = ("SF", "RF", "SB", "RB")
KINDS = COMPUTE + MESSAGES
SENDS, RECEIVES = ("SF", "SB"), ("RF", "RB")
GRADIENTS = ("B", "I")  # either makes the gradient of the stage's input
_PYTORCH = {"SEND_F": "SF", "RECV_F": "RF", "SEND_B": "SB", "RECV_B": "RB"}
_PARTNERS = {"SF": (1, "RF"), "RF": (-1, "SF"), "SB": (-1, "RB"), "RB": (1, "SB")}  # stage relative to ours, kind
_ACTION = re.compile(r"([0-9]{1,6})([A-Z_]+)([0-9]{1,6})")


class PlanError(InputError):
    """A plan that cannot be read, or an unknown schedule; one line says why."""


class Action(NamedTuple):
    """What one rank does at a time: an action of this kind (F, B, ...) of a stage, for a microbatch."""

    stage: int
    kind: str
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.microbatch}"

    @classmethod
    def parse(cls, text: str) -> Action:
        """From a text like "2F0", or PyTorch's "2SEND_F0"; PlanError for anything else."""
        found = _ACTION.fullmatch(text.strip())
        kind = _PYTORCH.get(found[2], found[2]) if found else ""
        if found is None or kind not in KINDS:
            valid = ", ".join(KINDS)
            shown = text.strip()[:40]
            raise PlanError(
                f"{shown!r} is not an action: valid is stage, kind and microbatch, like 2F0; kinds are {valid}"
            )
        return cls(int(found[1]), kind, int(found[3]))

    @property
    def is_message(self) -> bool:
        """Whether it sends or receives."""
        return self.kind in MESSAGES

    @property
    def partner(self) -> Action:
        """The receive of a send, and the send of a receive; KeyError for computing."""
        distance, kind = _PARTNERS[self.kind]
        return Action(self.stage + distance, kind, self.microbatch)


Program = tuple[Action, ...]
"""one rank's actions, in order"""


@dataclass(frozen=True)
class Plan:
    """The programs of all ranks."""

    name: str
    programs: tuple[Program, ...]
    blocking: bool = False
    """whether a send may hold its rank until it is received, as MPI_Send; or never, as MPI_Isend"""

    @property
    def pp(self) -> int:
        """How many ranks."""
        return len(self.programs)

    @cached_property
    def stages(self) -> int:
        """How many stages."""
        return 1 + max((action.stage for _, action in self.actions()), default=-1)

    @cached_property
    def microbatches(self) -> int:
        """How many microbatches."""
        return 1 + max((action.microbatch for _, action in self.actions()), default=-1)

    @cached_property
    def has_messages(self) -> bool:
        """Whether any send or receive is written out."""
        return any(action.is_message for _, action in self.actions())

    @cached_property
    def rank_of(self) -> dict[int, int]:
        """Stage -> the rank that computes it; in a plan where several do, the first."""
        ranks: dict[int, int] = {}
        for rank, action in self.actions():
            if not action.is_message:
                ranks.setdefault(action.stage, rank)
        return ranks

    def actions(self) -> Iterator[tuple[int, Action]]:
        """(rank, action) of all, rank by rank."""
        for rank, program in enumerate(self.programs):
            for action in program:
                yield rank, action

    def lines(self) -> list[str]:
        """The text form: a line for each rank, actions separated by blanks."""
        return [" ".join(map(str, program)) for program in self.programs]


def plan_of(name: str, programs: Sequence[Sequence[tuple[int, str, int]]]) -> Plan:
    """A plan from (stage, kind, microbatch), a sequence for each rank."""
    return Plan(name, tuple(tuple(Action(*action) for action in program) for program in programs))
