"""Mutants by rule: every place of a source file where an operator of the list below applies, and what it makes of it.

A mutant is one small change of the text. Left alone are refusals (`raise`, and the conditions of an `if` that only
raises), annotations, defaults, texts, decorators, and what only describes (`__repr__`, labels and predictions of the
ledger): they are no part of what ranks compute together.
"""

from __future__ import annotations

import ast
import collections
import dataclasses
import re
from collections.abc import Iterator

REDUCTIONS = {"all_reduce", "reduce", "reduce_scatter", "replicate", "summed", "return_slices", "_sum_in_tree"}
WAITS = {"Barrier", "barrier", "Sync", "wait", "Wait", "finish"}
MESSAGES = {"send", "receive", "isend", "ireceive", "shift", "_send", "Send", "Recv", "Isend", "Irecv", "sendrecv"}
COMMUNICATORS = {"comm", "world", "data", "model", "pipe", "_data", "_exchange", "_own", "mpi"}
AXES = {"axis", "split_axis", "concat_axis", "whole_axis", "position"}
ALIKE = (
    AXES,
    {"owned", "wanted", "have", "want", "own", "seen", "slices", "pieces"},
    {"split_sizes", "concat_sizes", "sizes", "rows", "columns", "vertical", "horizontal", "widths", "heights"},
    {"stage", "microbatch", "first", "last", "start", "stop", "size", "rank", "count", "step", "ranks", "width"},
    {"rank", "root", "source", "destination", "partner", "owner", "tag", "offset", "shift"},
    {"rank", "ACTIVATIONS", "GRADIENTS", "TAG_SLICES", "TAG_TREE", "TAG_SHIFT"},
    {"before", "after", "arrive", "depart", "forward", "backward", "moves"},
    {"x", "y", "g", "weight", "bias", "total", "local", "received", "array", "gradient", "share", "flat"},
    {"kernel", "stride", "padding", "dilation", "in_features", "out_features", "in_channels", "out_channels"},
    {"comm", "model", "pipe", "data", "world"},
)
_COMPARED = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
_DESCRIBES = {"__repr__", "__str__", "__reduce__", "as_dict", "labelled", "nearest", "describe"}
_DESCRIBES |= {"messages", "rows_sent", "of_others", "largest_outbound", "received", "layer_parameters"}  # what is sent
_EXCHANGED = {"sum": "max", "max": "min", "min": "max"}  # of Python, of NumPy, and by name
_EXCHANGED_OPERATIONS = {"SUM": "MAX", "MAX": "MIN", "MIN": "MAX", "LOR": "LAND", "LAND": "LOR", "PROD": "SUM"}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change: in `file` (relative to the package), at `line`, of `function`, `before` becomes `after`."""

    file: str
    line: int
    function: str
    operator: str
    kind: str
    """of bug: the taxonomy of docs/verification.md"""
    before: str
    after: str
    start: int
    """where in the file's bytes the change begins"""
    stop: int
    number: int = 1
    """which of those of the same text in the same function it is, from 1 on"""

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """What stays the same when lines are added above."""
        return self.file, self.function, self.before, self.after, self.number

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function}: {self.operator}: {self.before} -> {self.after}"

    def apply(self, source: str) -> str:
        """The file with the bug."""
        data = source.encode()
        assert " ".join(data[self.start : self.stop].decode().split()) == self.before, f"{self}: the file has changed"
        return (data[: self.start] + self.after.encode() + data[self.stop :]).decode()


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a node stands."""

    function: str
    owner: str
    """`self` in a method of a communicator, `comm` elsewhere: what knows rank and size"""
    in_pullback: bool
    in_message: bool
    """whether it is an argument of a send or a receive"""


def mutants_of(source: str, file: str) -> list[Mutant]:
    """Every mutant of a file, in the order of the text."""
    found = _File(source, file)
    found.walk(ast.parse(source), _Place("", "comm", False, False))
    unique = {(mutant.start, mutant.stop, mutant.after): mutant for mutant in found.mutants}
    counts: collections.Counter[tuple] = collections.Counter()
    numbered = []
    for _, mutant in sorted(unique.items()):
        counts[mutant.key] += 1
        numbered.append(dataclasses.replace(mutant, number=counts[mutant.key]))
    return numbered


class _File:
    """Walks through one file and collects."""

    def __init__(self, source: str, file: str) -> None:
        self.file, self.data = file, source.encode()
        starts = [0]
        for line in self.data.splitlines(keepends=True):
            starts.append(starts[-1] + len(line))
        self.starts = starts
        self.mutants: list[Mutant] = []

    # -- where ---------------------------------------------------------------------------------------------------
    def walk(self, node: ast.AST, place: _Place) -> None:
        """This node and those below it that are part of what is computed."""
        if isinstance(node, ast.Raise | ast.Assert | ast.Import | ast.ImportFrom | ast.JoinedStr | ast.Global):
            return
        if isinstance(node, ast.If) and all(isinstance(one, ast.Raise) for one in node.body):
            for below in node.orelse:
                self.walk(below, place)
            return
        if isinstance(node, ast.FunctionDef):
            if node.name in _DESCRIBES or node.name.lstrip("_").startswith(("require", "check_")):
                return
            inner = place.function != "" and node.name in ("pullback", "backward", "together")
            name = f"{place.function}.{node.name}" if place.function else node.name
            place = dataclasses.replace(place, function=name, in_pullback=place.in_pullback or inner)
            for below in node.body[1:] if ast.get_docstring(node) is not None else node.body:
                self.walk(below, place)
            return
        if isinstance(node, ast.ClassDef):
            owner = "self" if "Communicator" in node.name else "comm"
            for below in node.body:
                if isinstance(below, ast.FunctionDef):
                    self.walk(below, dataclasses.replace(place, function=node.name, owner=owner))
            return
        if isinstance(node, ast.Module):
            for below in node.body:
                if isinstance(below, ast.FunctionDef | ast.ClassDef):
                    self.walk(below, place)
            return
        if isinstance(node, ast.Call) and _called(node) in ("labelled", "announce", "enter_shared_memory"):
            self.walk(node.func, place)
            return
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and _refuses(node.value):
            return
        if isinstance(node, ast.Lambda) and [a.arg for a in node.args.args] == ["g"]:
            place = dataclasses.replace(place, in_pullback=True)
        if isinstance(node, ast.Call) and _called(node) in MESSAGES:
            place = dataclasses.replace(place, in_message=True)
        for operator, after, span in self.changes(node, place):
            self.add(node if span is None else span, operator, after, place)
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "msg"):
                continue
            for below in value if isinstance(value, list) else [value]:
                if isinstance(below, ast.AST):
                    self.walk(below, place)

    def add(self, node: ast.AST, operator: str, after: str, place: _Place) -> None:
        start = self.starts[node.lineno - 1] + node.col_offset
        stop = self.starts[node.end_lineno - 1] + node.end_col_offset
        before = " ".join(self.data[start:stop].decode().split())
        kind = _kind(operator, node, place, before)
        self.mutants.append(Mutant(self.file, node.lineno, place.function, operator, kind, before, after, start, stop))

    # -- what ----------------------------------------------------------------------------------------------------
    def changes(self, node: ast.AST, place: _Place) -> Iterator[tuple[str, str, ast.AST | None]]:
        """(operator, new text, the node it stands for if not this one)."""
        for rule in (_signs, _logic, _ranks_and_sizes, _cuts, _calls, _arguments, _statements, _pullbacks):
            for found in rule(node, place):
                operator, after, *span = found
                yield operator, after, span[0] if span else None


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _refuses(node: ast.Call) -> bool:
    return _called(node).lstrip("_").startswith(("require", "check_", "announce", "enter_shared_memory"))


def _text(node: ast.AST) -> str:
    return ast.unparse(node)


def _no_number(node: ast.AST) -> bool:
    """Texts, tuples and lists, which are joined and repeated and not added up."""
    return any(isinstance(one, ast.Tuple | ast.List | ast.JoinedStr | ast.ListComp) for one in ast.walk(node)) or any(
        isinstance(one, ast.Constant) and isinstance(one.value, str) for one in ast.walk(node)
    )


def _signs(node: ast.AST, place: _Place) -> Iterator[tuple]:
    if isinstance(node, ast.BinOp) and not _no_number(node):
        left, right = _text(node.left), _text(node.right)
        if isinstance(node.op, ast.Add):
            yield "sign", f"({left} - ({right}))"
        elif isinstance(node.op, ast.Sub):
            yield "sign", f"({left} + {right})"
        elif isinstance(node.op, ast.Mult | ast.Div):
            yield "factor", f"({left})"
        elif isinstance(node.op, ast.FloorDiv):
            yield "rounding", f"({left} // ({right}) + 1)"
        elif isinstance(node.op, ast.Mod):
            yield "modulo", f"({left})"
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield "sign", f"({_text(node.operand)})"


def _logic(node: ast.AST, place: _Place) -> Iterator[tuple]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield "comparison", f"({_text(node.left)} {_COMPARED[type(node.ops[0])]} {_text(node.comparators[0])})"
    if isinstance(node, ast.BoolOp):
        word = " or " if isinstance(node.op, ast.And) else " and "
        yield "and/or", f"({word.join(f'({_text(value)})' for value in node.values)})"
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not", f"({_text(node.operand)})"
    if isinstance(node, ast.If | ast.IfExp) and isinstance(node.test, ast.Name | ast.Attribute | ast.Call):
        yield "not", f"(not {_text(node.test)})", node.test


def _ranks_and_sizes(node: ast.AST, place: _Place) -> Iterator[tuple]:
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and node.attr in ("rank", "size"):
        owner = node.value
        last = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
        if last in COMMUNICATORS or (last == "self" and place.owner == "self"):
            whose = _text(owner)
            if node.attr == "rank":
                yield "rank + 1", f"(({whose}.rank + 1) % {whose}.size)"
                yield "rank - 1", f"(({whose}.rank - 1) % {whose}.size)"
            else:
                yield "size - 1", f"({whose}.size - 1)"
                yield "size + 1", f"({whose}.size + 1)"
    if isinstance(node, ast.Call):
        for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
            if isinstance(argument, ast.Name) and argument.id in ("root", "owner"):
                yield "root", f"({place.owner}.size - 1 - {argument.id})", argument
            if isinstance(argument, ast.Name) and argument.id in AXES:
                yield "axis", "0", argument
                yield "axis", f"({argument.id} - 1)", argument


def _cuts(node: ast.AST, place: _Place) -> Iterator[tuple]:
    if isinstance(node, ast.Slice):
        if isinstance(node.step, ast.UnaryOp):  # [::-1]
            yield "order", "1", node.step
        for end, change in ((node.lower, "+ 1"), (node.upper, "- 1")):
            if end is not None:
                yield "slice end", f"({_text(end)}) {change}", end
    if isinstance(node, ast.Call) and _called(node) == "slice" and len(node.args) == 2:
        for end, change in zip(node.args, ("+ 1", "- 1")):
            yield "slice end", f"({_text(end)}) {change}", end
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant | ast.UnaryOp):
        index = _text(node.slice)
        if index.lstrip("-").isdigit():
            yield "index", str(int(index) + 1), node.slice
    if isinstance(node, ast.Call):
        for argument in node.args:
            if isinstance(argument, ast.Constant) and type(argument.value) is int:
                yield "number", str(argument.value + 1), argument
    value = node.value if isinstance(node, ast.keyword | ast.Return) else None
    if isinstance(value, ast.Constant) and isinstance(value.value, bool):
        yield "flag", str(not value.value), value


def _calls(node: ast.AST, place: _Place) -> Iterator[tuple]:
    if not isinstance(node, ast.Call):
        return
    name, function = _called(node), _text(node.func)
    if name in REDUCTIONS and node.args:
        first, *rest = (_text(argument) for argument in [*node.args, *node.keywords])
        yield "dropped reduction", f"({first})"
        if name in ("all_reduce", "replicate", "summed"):
            yield "doubled reduction", f"{function}({', '.join([_text(node), *rest])})"
    if isinstance(node.func, ast.Name) and name in _EXCHANGED:
        yield "reduction operation", _EXCHANGED[name], node.func
    if isinstance(node.func, ast.Attribute) and function in ("np.add", "np.sum"):
        yield "reduction operation", "np.maximum" if function == "np.add" else "np.max", node.func
    if name in ("reversed", "sorted") and isinstance(node.func, ast.Name):
        yield "order", "list", node.func
    if name == "range" and not place.in_message:
        yield "order", f"reversed({_text(node)})"
    if name == "zip" and len(node.args) == 2:
        yield "order", f"reversed(list({_text(node.args[1])}))", node.args[1]


def _arguments(node: ast.AST, place: _Place) -> Iterator[tuple]:
    if isinstance(node, ast.Attribute) and _text(node.value) == "MPI" and node.attr in _EXCHANGED_OPERATIONS:
        yield "reduction operation", f"MPI.{_EXCHANGED_OPERATIONS[node.attr]}"
    if not isinstance(node, ast.Call) or _called(node) in ("isinstance", "zip", "print", "setattr", "getattr"):
        return
    for argument in node.args:
        if isinstance(argument, ast.Constant) and argument.value in ("sum", "or", "max", "min"):
            yield "reduction operation", repr({"sum": "max", "or": "and"}.get(argument.value, "sum")), argument
    for one, other in zip(node.args, node.args[1:]):
        if _are_alike(one, other):
            yield "arguments swapped", f"{_text(other)}, {_text(one)}", _Span(one, other)


def _are_alike(one: ast.expr, other: ast.expr) -> bool:
    """Whether the program would go on if one replaced the other: a value of another type ends it with an error."""
    names = [_text(node).rpartition(".")[2].strip("_") for node in (one, other)]
    return names[0] != names[1] and any(set(names) <= alike for alike in ALIKE)


class _Span(ast.AST):
    """From one node to another."""

    def __init__(self, first: ast.expr, last: ast.expr) -> None:
        super().__init__()
        self.lineno, self.col_offset = first.lineno, first.col_offset
        self.end_lineno, self.end_col_offset = last.end_lineno, last.end_col_offset


def _statements(node: ast.AST, place: _Place) -> Iterator[tuple]:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "dropped call", "pass"
    if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add) and not _no_number(node.value):
        target, value = _text(node.target), _text(node.value)
        yield "sign", f"{target} -= {value}"
        plain = f"{target} = {value}"
        yield "not accumulated", plain
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0]
        new = isinstance(target, ast.Attribute) and not place.function.endswith("__init__")
        if new or isinstance(target, ast.Subscript):
            yield "dropped assignment", "pass"


def _pullbacks(node: ast.AST, place: _Place) -> Iterator[tuple]:
    if isinstance(node, ast.Lambda) and place.in_pullback and [a.arg for a in node.args.args] == ["g"]:
        body = _text(node.body)
        yield "adjoint", f"-({body})", node.body
        if body == "g":
            yield "adjoint", "comm.all_reduce(g)", node.body


_GATHERS = {"_all", "_rows", "own_state", "gather_state", "state_dict", "load_state_dict", "sha256", "gather", "piece"}
_PLACES = re.compile(r"\b(places|seed)\b|\.first\b|\.at\(|\bfirst \+ s\.")


def _kind(operator: str, node: ast.AST, place: _Place, before: str) -> str:
    """The kind of bug, by where it is and what it does."""
    called = _called(node.value) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else ""
    owner, _, name = place.function.rpartition(".")
    if called in WAITS:
        return "race: not waited for"
    if any(word in name for word in ("evaluate", "predict", "whole_output", "whole_loss")):
        return "evaluation"
    if name in _GATHERS and owner in ("ModelParallel", "PipelineParallel"):
        return "gathering and loading whole weights"
    if place.in_pullback:
        return "wrong adjoint"
    if operator in ("dropped reduction", "doubled reduction"):
        return "missing or doubled reduction"
    if operator == "reduction operation":
        return "another reduction"
    if place.in_message or called in MESSAGES:
        return "deadlock or wrong partner"
    if operator in ("sign", "slice end", "factor", "dropped call", "index", "order") and _PLACES.search(before):
        return "seed or place of samples"
    return next((kind for kind, operators in _KINDS.items() if operator in operators), "condition")


_KINDS = {
    "wrong slice or place": {
        "slice end",
        "index",
        "axis",
        "rank + 1",
        "rank - 1",
        "root",
        "modulo",
        "number",
        "rounding",
    },
    "wrong size": {"size - 1", "size + 1"},
    "order, or arguments swapped": {"order", "arguments swapped"},
    "scale or sign": {"sign", "factor", "adjoint"},
    "stale or missing state": {"dropped call", "dropped assignment", "not accumulated"},
}

__all__ = ["Mutant", "mutants_of"]
