"""What the ranks of a deadlock do, side by side: who is to blame first."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from parallel_dl.watchdog.deadlock import differing, in_circles, missing_in, odd_ones, unmet, waits_for
from parallel_dl.watchdog.record import COLLECTIVE, RECEIVE, SEND
from parallel_dl.watchdog.state import State, Wait

_MOST_FRAMES = 8


def headline(ranks: Collection[int], states: Mapping[int, State], ended: Collection[int]) -> str:
    """One line: which ranks wait for each other, or for whom who has ended."""
    if (found := differing(ranks, states)) is not None:
        wait, calls = found
        sides = [f"{named(calls[name])} called {name}" for name in sorted(calls, key=lambda name: len(calls[name]))]
        return f"on communicator {wait.communicator!r}: {sides[0]} but {', '.join(sides[1:])}"
    circle = in_circles(ranks, states)
    gone = sorted(rank for rank in ended if any(rank in waits_for(states[other], states) for other in ranks))
    if gone:
        have, it = ("has", "it") if len(gone) == 1 else ("have", "them")
        waiting = sorted(rank for rank in ranks if waits_for(states[rank], states) & set(gone))
        return f"{named(gone)} {have} ended, and {named(waiting)} {'waits' if len(waiting) == 1 else 'wait'} for {it}"
    if circle == {next(iter(circle), -1)}:
        return f"{named(circle)} waits for itself"
    if circle:
        return f"{named(circle)} wait for each other"
    return f"{named(ranks)} can never go on"


def by_blame(ranks: Collection[int], states: Mapping[int, State], ended: Collection[int]) -> list[int]:
    """All ranks, those first that are to blame when `ranks` cannot go on."""
    odd, circle = odd_ones(states), in_circles(ranks, states)
    awaited = {rank: waits_for(states[rank], states) for rank in ranks}
    gone = {rank for rank in ended if any(rank in others for others in awaited.values())}
    found = differing(ranks, states)
    wrong = set() if found is None else set(sorted(found[1].values(), key=len)[0])
    alone = {rank for rank in ranks if len(awaited[rank] & gone) > len(awaited) and _is_of_many(states[rank])}
    alone |= {rank for rank in ranks if awaited[rank] & gone and hint(states[rank], states)}

    def blame(rank: int) -> tuple:
        core = rank in circle or rank in gone or rank in alone or rank in wrong
        waiting = sum(rank in others for others in awaited.values())
        hinted = bool(hint(states.get(rank), states))
        first = (rank not in wrong, not core, rank not in alone, rank not in gone)
        return (*first, rank not in odd, not hinted, -waiting, rank)

    return sorted({*states, *ended}, key=blame)


def _is_of_many(state: State) -> bool:
    """Whether it waits in a call for which any rank or all ranks would do: if most have ended, it is the odd one."""
    return any(wait.kind == COLLECTIVE or wait.peer is None for wait in state.waits)


def rows(order: Iterable[int], states: Mapping[int, State], ended: Collection[int]) -> list[tuple[str, str, str]]:
    """(rank, what it does, where) of every rank."""
    odd = odd_ones(states)
    found = []
    for rank in order:
        state = states.get(rank)
        if rank in ended:
            where = state.where if state is not None else ""
            found.append((f"rank {rank}", f"has ended{'; its last call:' if where else ''}", where))
        elif state is not None and state.waits:
            what = f"waits in {state.call}{_for_whom(state, states)}"
            if rank in odd:
                what += f"; most ranks call {odd[rank]} there"
            found.append((f"rank {rank}", what + hint(state, states), state.where))
        elif state is not None:
            found.append((f"rank {rank}", "is in its own code", state.where))
    return found


def lines(ranks: Collection[int], states: Mapping[int, State], ended: Collection[int]) -> list[str]:
    """A line for every rank, aligned: of a deadlock of these ranks."""
    return columns(rows(by_blame(ranks, states, ended), states, ended))


def positions(states: Mapping[int, State], ended: Collection[int]) -> list[str]:
    """Where all ranks are, with the lines that led there; those that wait for others come last."""
    order = sorted({*states, *ended}, key=lambda rank: (bool(states[rank].waits) if rank in states else True, rank))
    found = []
    for rank, line in zip(order, columns(rows(order, states, ended))):
        found.append(line)
        if rank not in ended:
            found += [f"      called from {frame}" for frame in states[rank].frames[1:_MOST_FRAMES]]
    return found


def columns(table: Sequence[tuple[str, str, str]], marks: Sequence[bool] = ()) -> list[str]:
    """Rows of three as aligned lines; those that are to be marked begin with >."""
    widths = [max((len(row[column]) for row in table), default=0) for column in range(2)]
    found = []
    for index, (rank, what, where) in enumerate(table):
        mark = ">" if index < len(marks) and marks[index] else " "
        found.append(f"{mark} {rank:<{widths[0]}}  {what:<{widths[1]}}  {where}".rstrip())
    return found


def _for_whom(state: State, states: Mapping[int, State]) -> str:
    parts = []
    for wait in unmet(state, states):
        if wait.kind == COLLECTIVE:
            missing = missing_in(wait, states)
            parts.append(f"for {named(missing)}" if missing else "")
        elif wait.kind == SEND:
            parts.append("" if wait.peer is None else f"for {named([wait.peer])} to receive")
        else:
            parts.append("for any rank to send" if wait.peer is None else f"for {named([wait.peer])} to send")
    said = [part for part in dict.fromkeys(parts) if part]
    return f" {(' or ' if state.one_is_enough else ' and ').join(said)}" if said else ""


def hint(state: State | None, states: Mapping[int, State]) -> str:
    """What else is known: a message that waits under another tag, or on another communicator."""
    if state is None:
        return ""
    for look in (_waiting_for, _from_another):
        for wait in unmet(state, states):
            if wait.kind == RECEIVE and (found := look(state, wait, states)):
                return found
    return ""


def _waiting_for(state: State, wait: Wait, states: Mapping[int, State]) -> str:
    for source, other in states.items():
        if wait.peer not in (None, source):
            continue
        for (group, to, tag), sent in other.sent.items():
            left = sent - state.received.get((group, source, tag), 0)
            if to != state.rank or left <= 0:
                continue
            if group == wait.group and wait.tag not in (None, tag):
                return f"; rank {source} has sent it {_messages(left)} with tag {tag}"
            if group != wait.group:
                return f"; rank {source} has sent it {_messages(left)} on another communicator"
    return ""


def _from_another(state: State, wait: Wait, states: Mapping[int, State]) -> str:
    """A message that this receive would take, but from another rank; or one of its rank that has gone to another."""
    for source, other in states.items():
        for (group, to, tag), sent in other.sent.items():
            if group != wait.group or wait.tag not in (None, tag) or group in state.inexact or group in other.inexact:
                continue
            receiver = states.get(to)
            left = sent - (receiver.received.get((group, source, tag), 0) if receiver is not None else sent)
            if left <= 0 or wait.peer is None or _expects(receiver, source, group, tag):
                continue
            if to == state.rank:
                return f"; rank {source} has sent it {_messages(left)} with tag {tag}"
            if source == wait.peer:
                return f"; rank {source} has sent {_messages(left)} with tag {tag} to rank {to} instead"
    return ""


def _expects(state: State | None, source: int, group: str, tag: int) -> bool:
    """Whether a rank waits for such a message."""
    return state is not None and any(
        wait.group == group and wait.peer in (None, source) and wait.tag in (None, tag)
        for wait in (*state.waits, *state.posted)
        if wait.kind == RECEIVE
    )


def notice(state: State, waiting: Collection[int]) -> str:
    """One line about a rank in its own code for which others wait."""
    where = f", at {state.where}" if state.where else ""
    wait = "waits" if len(waiting) == 1 else "wait"
    computes = f"rank {state.rank} has been in its own code for {state.seconds:.0f} s{where}"
    return f"{computes}; {named(waiting)} {wait} for it"


def _messages(number: int) -> str:
    return "a message" if number == 1 else f"{number} messages"


def named(ranks: Iterable[int]) -> str:
    """`rank 1`, `ranks 0 and 2`, `ranks 0 to 5`."""
    numbers = sorted(ranks)
    if len(numbers) == 1:
        return f"rank {numbers[0]}"
    if len(numbers) > 4 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"ranks {numbers[0]} to {numbers[-1]}"
    return f"ranks {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
