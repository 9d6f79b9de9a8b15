"""The simulator: a plan on a virtual clock, with times for actions and a cost for messages."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

from parallel_dl.errors import number_of
from parallel_dl.schedule.actions import ALL, COLLECTIVES, RECEIVES, SENDS, Action, Plan, PlanError
from parallel_dl.schedule.check import peak_live
from parallel_dl.schedule.order import walk

RENDEZVOUS_LATENCIES = 3  # ask, agree, send
MOST = 1e100  # so that no sum or product of times and bytes overflows

PerStage = float | Sequence[float]


def _require_numbers(of: Times | Wire) -> None:
    """Every field of a dataclass that is set has finite numbers from 0 on."""
    for field in fields(of):
        value = getattr(of, field.name)
        for number in value if isinstance(value, Sequence) else () if value is None else (value,):
            if not 0 <= number <= MOST:
                raise PlanError("must be a finite number, at least 0", field.name, number)


@dataclass(frozen=True)
class Times:
    """The time of each kind of action, in any unit: a number for all stages, or one per stage.

    A full backward (B) takes the time of both halves, and recomputing (R) that of a forward. A collective takes its
    time from the arrival of the last rank of its group. An action without a stage takes the sum over the stages of its
    rank. PlanError for negative or non-finite times.
    """

    forward: PerStage = 1.0
    backward_input: PerStage = 1.0
    backward_weight: PerStage = 1.0
    update: PerStage = 0.0
    all_reduce: PerStage = 0.0
    reduce_scatter: PerStage = 0.0
    all_gather: PerStage = 0.0

    def __post_init__(self) -> None:
        _require_numbers(self)

    def of(self, action: Action, stages: Sequence[int] = ()) -> float:
        """How long this action takes on a rank with these stages; PlanError when its stage has no number."""
        own = stages if action.stage == ALL else (action.stage,)
        return sum(self._one(name, stage) for stage in own for name in _TIMES[action.kind])

    def _one(self, name: str, stage: int) -> float:
        value = getattr(self, name)
        if not isinstance(value, Sequence):
            return value
        if stage >= len(value):
            raise PlanError(f"`{name}`: has times for {number_of(len(value), 'stage')}, none for stage {stage}")
        return value[stage]


_TIMES = {
    "F": ("forward",),
    "B": ("backward_input", "backward_weight"),
    "I": ("backward_input",),
    "W": ("backward_weight",),
    "R": ("forward",),
    "U": ("update",),
    "AR": ("all_reduce",),
    "RS": ("reduce_scatter",),
    "AG": ("all_gather",),
}


@dataclass(frozen=True)
class Wire:
    """The cost of a message, in the unit of `Times`: latency + bytes * seconds_per_byte.

    Above `eager_limit` bytes, sender and receiver first agree (rendezvous): this takes three latencies, and a blocking
    send holds its rank until the message has arrived. Gradients have `gradient_bytes`, by default as many as
    activations. PlanError for negative or non-finite values.
    """

    latency: float = 0.0
    seconds_per_byte: float = 0.0
    bytes: float = 0.0
    eager_limit: float | None = None
    gradient_bytes: float | None = None

    def __post_init__(self) -> None:
        _require_numbers(self)

    @property
    def is_rendezvous(self) -> bool:
        """Whether messages are above the limit; without a limit never."""
        return self.eager_limit is not None and self.bytes > self.eager_limit

    @property
    def seconds(self) -> float:
        """The time from send to arrival, if the receiver is waiting."""
        return self._seconds(self.bytes)

    def of(self, send: Action) -> float:
        """The same for one message."""
        is_gradient = send.kind == "SB" and self.gradient_bytes is not None
        return self._seconds(self.gradient_bytes if is_gradient else self.bytes)  # type: ignore[arg-type]

    def _seconds(self, size: float) -> float:
        return self.latency * (RENDEZVOUS_LATENCIES if self.is_rendezvous else 1) + size * self.seconds_per_byte


@dataclass(frozen=True)
class Event:
    """One action on the clock: of computing, of a collective, or a message from its send to its arrival."""

    rank: int
    action: Action
    start: float
    end: float


@dataclass(frozen=True)
class Simulation:
    """The result of a simulation, in the unit of `Times`. Divisions by zero give nan or inf."""

    plan: Plan
    events: tuple[Event, ...]
    """the compute actions, in order of their start"""
    makespan: float
    """from 0 to the end of the last rank"""
    critical_path: tuple[Event, ...]
    """the chain of compute actions that ends last; only messages lie between its links"""
    busy: tuple[float, ...]
    """by rank: time spent computing"""
    input_rate: float | None = None
    """arrival rate in microbatches per unit of time; None: all are present from the start"""
    traffic: tuple[Event, ...] = ()
    """messages and collectives, of each rank that sends or takes part, in order of their start"""

    @property
    def idle(self) -> tuple[float, ...]:
        """By rank: time in the step in which it does not compute."""
        return tuple(self.makespan - busy for busy in self.busy)

    @property
    def idle_shares(self) -> tuple[float, ...]:
        """By rank: idle time / makespan."""
        return tuple(_ratio(idle, self.makespan) for idle in self.idle)

    @property
    def idle_fraction(self) -> float:
        """Idle time of all ranks / their time in the step: (p-1)/(m+p-1) for gpipe and 1f1b."""
        return _ratio(sum(self.idle), self.makespan * self.plan.ranks)

    @property
    def bubble_overhead(self) -> float:
        """Idle time of all ranks / their time computing: (p-1)/m for gpipe and 1f1b."""
        return _ratio(sum(self.idle), sum(self.busy))

    @property
    def concurrency(self) -> float:
        """The average number of ranks computing over the makespan: p m/(m+p-1) for gpipe and 1f1b."""
        return _ratio(sum(self.busy), self.makespan)

    @property
    def communication(self) -> float:
        """The time that messages and collectives would take one after another, averaged over the ranks."""
        return math.fsum(event.end - event.start for event in self.traffic) / self.plan.ranks

    @property
    def hidden(self) -> float:
        """The share of `communication` during which ranks do not wait, averaged over the ranks; 0 without any."""
        return 1 - sum(self.idle) / self.plan.ranks / self.communication if self.communication else 0.0

    @property
    def overlap(self) -> float:
        """Share of the makespan in which a forward and a backward (B, I or W) of another microbatch run, on two ranks.

        0 for naive and gpipe. It is the survey's overlap of one batch's forward with another's backward (Ben-Nun and
        Hoefler, arXiv 1802.09941, section "Pipelining").
        """
        changes = [(time, step, e.action) for e in self.events for time, step in ((e.start, 1), (e.end, -1))]
        forward: Counter[int] = Counter()  # microbatch -> how many ranks are at it
        backward: Counter[int] = Counter()
        total = since = 0.0
        for time, step, action in sorted(changes, key=lambda change: change[0]):
            if forward and backward and len(forward.keys() | backward.keys()) > 1:
                total += time - since
            since = time
            running = {"F": forward, "B": backward, "I": backward, "W": backward}.get(action.kind)
            if running is None:
                continue
            running[action.microbatch] += step
            if not running[action.microbatch]:
                del running[action.microbatch]
        return _ratio(total, self.makespan)

    @property
    def peak_live(self) -> tuple[int, ...]:
        """By rank: the most activations that await their backward; see `check.peak_live`."""
        return peak_live(self.plan)

    @property
    def latency(self) -> float:
        """Of one sample: from the start of microbatch 0 to the end of its forward pass on the last stage."""
        forwards = [event for event in self.events if event.action.kind == "F" and event.action.microbatch == 0]
        return max((e.end for e in forwards), default=math.nan) - min((e.start for e in forwards), default=math.nan)

    @property
    def throughput(self) -> float:
        """Microbatches per unit of time over the whole makespan, filling and draining included."""
        return _ratio(self.plan.microbatches, self.makespan)

    # -- a continuous stream ---------------------------------------------------------------------------------------
    @cached_property
    def entries(self) -> tuple[float, ...]:
        """The times at which microbatches enter stage 0, in order."""
        return tuple(e.start for e in self.events if e.action.kind == "F" and e.action.stage == 0)

    @property
    def steady_throughput(self) -> float | None:
        """Microbatches per unit of time that enter stage 0 in the steady state, taken as the plan's second half.

        With enough of them min(input rate, 1/slowest stage) for 1f1b and pipedream (free messages), and min(input
        rate, 1/all stages) for naive. None where there is no steady state: the second half has not pp microbatches, or
        more than half of them are alive at the same time, as always in gpipe.
        """
        of_stage = self.plan.rank_of.get(0)
        count = len(self.entries)
        span = (count - 1 - count // 2) // self.plan.pp * self.plan.pp  # interleaved takes them in groups of pp
        if of_stage is None or span < 1:
            return None
        forwards = sum(action.kind == "F" for action in self.plan.programs[of_stage])
        if 2 * self.peak_live[of_stage] > forwards:
            return None
        return _ratio(span, self.entries[-1] - self.entries[-1 - span])

    @property
    def queue_growth(self) -> float | None:
        """The growth of the queue before stage 0 in the steady state, in microbatches per unit of time.

        It is input rate - steady throughput: the slope of `queue`; 0 when the stages keep up. None without an input
        rate or a steady state.
        """
        steady = self.steady_throughput
        if self.input_rate is None or steady is None:
            return None
        growth = self.input_rate - steady
        return 0.0 if abs(growth) < 1e-9 * self.input_rate else growth

    def queue(self, time: float) -> int:
        """The number of microbatches of an endless stream that have arrived by `time` and wait before stage 0.

        Up to the plan's last entry, after which nothing is simulated; 0 without an input rate.
        """
        if self.input_rate is None:
            return 0
        come = 1 + math.floor(time * self.input_rate * (1 + 1e-12))
        return come - sum(entry <= time for entry in self.entries)


def _ratio(above: float, below: float) -> float:
    if below:
        return above / below
    return math.inf if above else math.nan


class Deadlock(RuntimeError):
    """Raised if a plan does not complete; `order.find_cycle` says why."""


def simulate(plan: Plan, times: Times = Times(), wire: Wire = Wire(), input_rate: float | None = None) -> Simulation:
    """Runs a plan with its messages, which must pass `check`, on a virtual clock; raises Deadlock if it gets stuck.

    Each rank does one action at a time. A message travels for `wire.seconds`, any number of messages at once, and takes
    no time on its sender or receiver; the receiver continues once it has arrived. But if the plan's sends block and the
    message is above the eager limit, both ranks are held from the time the later one gets there until the message has
    arrived. With `input_rate`, microbatch j enters stage 0 no earlier than j / input_rate. PlanError for a rate that is
    not above 0.
    """
    if input_rate is not None and not 1 / MOST <= input_rate <= MOST:
        raise PlanError("must be a finite number above 0", "input_rate", input_rate)
    order, stuck = walk(plan, rendezvous=wire.is_rendezvous)
    if stuck:
        raise Deadlock(f"{plan.name}: " + ", ".join(map(str, stuck.values())))
    clock = _Clock(plan, times, wire, input_rate)
    for rank, action in order:
        if action.kind in SENDS:
            clock.send(rank, action)
        elif action.kind in RECEIVES:
            clock.receive(rank, action)
        elif action.kind in COLLECTIVES:
            clock.meet(rank, action)
        else:
            clock.compute(rank, action)
    events, traffic = (tuple(sorted(of, key=lambda e: (e.start, e.rank))) for of in (clock.events, clock.traffic))
    makespan = max(clock.now, default=0.0)
    return Simulation(plan, events, makespan, clock.critical_path(), tuple(clock.busy), input_rate, traffic)


class _Clock:
    """The time on each rank, and what it has waited for."""

    def __init__(self, plan: Plan, times: Times, wire: Wire, input_rate: float | None) -> None:
        self.plan, self.times, self.wire, self.input_rate = plan, times, wire, input_rate
        self.holds = plan.blocking and wire.is_rendezvous
        self.now = [0.0] * plan.ranks
        self.busy = [0.0] * plan.ranks
        self.events: list[Event] = []
        self.traffic: list[Event] = []
        self.before: list[int | None] = []  # by event: the one that it has waited for, as index
        self.last: list[int | None] = [None] * plan.ranks  # by rank: what its next event follows, as index of an event
        # (rank, send) -> when it arrives, index of the event that caused it
        self.arrivals: dict[tuple[int, Action], tuple[float, int | None]] = {}
        self.met: dict[tuple[tuple[int, ...], Action], tuple[float, int | None]] = {}  # group, collective -> its end

    def send(self, rank: int, action: Action) -> None:
        """Puts it on its way."""
        peers = self.plan.peers(rank, action)
        if not peers:
            return
        start, cause = self.now[rank], self.last[rank]
        end = start + self.wire.of(action)
        if self.holds and action.sub_batch == ALL:
            (other,) = peers
            if self.now[other] > start:
                start, cause = self.now[other], self.last[other]
            end = start + self.wire.of(action)
            self.now[rank], self.last[rank] = end, cause
        self.arrivals[rank, action] = end, cause
        self.traffic.append(Event(rank, action, start, end))

    def receive(self, rank: int, action: Action) -> None:
        """Waits for it."""
        for other in self.plan.peers(rank, action):
            self._wait(rank, *self.arrivals[other, action.partner])

    def meet(self, rank: int, action: Action) -> None:
        """Waits for the group, of which all come here one after the other, and for the collective."""
        group = tuple(sorted((rank, *self.plan.peers(rank, action))))
        if len(group) == 1:
            return
        if (group, action) not in self.met:
            latest = max(group, key=lambda one: self.now[one])
            end = self.now[latest] + max(self.times.of(action, self.plan.stages_of[one]) for one in group)
            self.met[group, action] = end, self.last[latest]
            self.traffic += [Event(one, action, self.now[latest], end) for one in group]
        self._wait(rank, *self.met[group, action])

    def _wait(self, rank: int, until: float, cause: int | None) -> None:
        if until > self.now[rank]:
            self.now[rank], self.last[rank] = until, cause

    def compute(self, rank: int, action: Action) -> None:
        """Takes its time."""
        start, cause = self.now[rank], self.last[rank]
        if self.input_rate is not None and action.kind == "F" and action.stage == 0:
            due = action.microbatch / self.input_rate
            if due > start:
                start, cause = due, None
        taken = self.times.of(action, self.plan.stages_of[rank])
        self.before.append(cause)
        self.last[rank] = len(self.events)
        self.now[rank] = start + taken
        self.busy[rank] += taken
        self.events.append(Event(rank, action, start, self.now[rank]))

    def critical_path(self) -> tuple[Event, ...]:
        """From the start to the end of what ends last."""
        path = []
        here = max(range(len(self.events)), key=lambda i: self.events[i].end) if self.events else None
        while here is not None:
            path.append(self.events[here])
            here = self.before[here]
        return tuple(reversed(path))
