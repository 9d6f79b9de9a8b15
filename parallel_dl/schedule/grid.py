"""A step drawn as text: one row per rank, time from left to right."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

from parallel_dl.schedule.simulate import Event, Simulation

IDLE = "."


class Piece(NamedTuple):
    """Some characters of a row, all of one kind of action; `kind` is empty where the rank is idle."""

    text: str
    kind: str


def grid(simulation: Simulation, width: int) -> list[list[Piece]]:
    """The rows, each of at most `width` characters in all, as pieces from left to right.

    A piece is kind and microbatch, with the stage before them where ranks have several: `F0`, `2F0`. One that takes
    longer than its name is filled with `-`; one that is too short for it has its kind only, and one that takes no time
    is left out. All rows have the same scale.
    """
    rows: list[list[Event]] = [[] for _ in simulation.plan.programs]
    for event in simulation.events:
        rows[event.rank].append(event)
    scale = _scale(simulation, width)
    end = round(simulation.makespan * scale)
    return [_row(row, scale, end, simulation.plan.stages > simulation.plan.pp) for row in rows]


def _row(events: list[Event], scale: float, end: int, with_stage: bool) -> list[Piece]:
    pieces: list[Piece] = []
    at = 0
    for event in events:
        start, stop = round(event.start * scale), round(event.end * scale)
        if stop == start:
            continue
        if start > at:
            pieces.append(Piece(IDLE * (start - at), ""))
        pieces.append(Piece(_filled(_name(event, with_stage), event.action.kind, stop - start), event.action.kind))
        at = stop
    if end > at:
        pieces.append(Piece(IDLE * (end - at), ""))
    return pieces


def _name(event: Event, with_stage: bool) -> str:
    return str(event.action) if with_stage else f"{event.action.kind}{event.action.microbatch}"


def _filled(name: str, kind: str, length: int) -> str:
    if len(name) > length:
        return kind * length
    return name if len(name) == length else name.ljust(length - 1, "-") + " "


def _scale(simulation: Simulation, width: int) -> float:
    """Characters per unit of time: so many that every name and a blank fit where all starts and ends are whole."""
    lengths = [event.end - event.start for event in simulation.events if event.end > event.start]
    if not lengths:
        return 0.0
    with_stage = simulation.plan.stages > simulation.plan.pp
    longest_name = max(len(_name(event, with_stage)) for event in simulation.events)
    shortest = min(lengths)
    step = Fraction(0)  # the common part of all times, in units of the shortest action
    for time in {time for event in simulation.events for time in (event.start, event.end)}:
        step = _common(step, Fraction(time / shortest).limit_denominator(100))
    per_action = max(1.0, float(1 / step))  # characters of the shortest action, with one for each common part
    wide = per_action * math.ceil((longest_name + 1) / per_action) / shortest
    return min(wide, width / simulation.makespan)


def _common(one: Fraction, other: Fraction) -> Fraction:
    """The greatest part of which both are multiples."""
    denominator = one.denominator * other.denominator
    return Fraction(math.gcd(one.numerator * other.denominator, other.numerator * one.denominator), denominator)
