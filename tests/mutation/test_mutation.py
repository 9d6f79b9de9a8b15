"""The generator of mutants: reproducible, and each a small change; the campaign: what it sees, and what it leaves."""

import ast
import os

import campaign
import operators
import pytest

SOURCE = '''
def movement(x, comm, axis=0):
    """Text with 1 + 1."""
    if axis < 0:
        raise ValueError(f"axis {axis - 1}")
    total = comm.all_reduce(x) / comm.size
    comm.barrier()
    rows = total[start : comm.rank + 1]
    return rows, lambda g: comm.all_gather(g, axis, sizes)
'''


def changes(source):
    return {(m.operator, m.before, m.after, m.kind) for m in operators.mutants_of(source, "file.py")}


def test_operators():
    found = changes(SOURCE)
    expected = {
        ("factor", "comm.all_reduce(x) / comm.size", "(comm.all_reduce(x))", "scale or sign"),
        ("dropped reduction", "comm.all_reduce(x)", "(x)", "missing or doubled reduction"),
        (
            *("doubled reduction", "comm.all_reduce(x)", "comm.all_reduce(comm.all_reduce(x))"),
            "missing or doubled reduction",
        ),
        ("size - 1", "comm.size", "(comm.size - 1)", "wrong size"),
        ("rank + 1", "comm.rank", "((comm.rank + 1) % comm.size)", "wrong slice or place"),
        ("slice end", "start", "(start) + 1", "wrong slice or place"),
        ("slice end", "comm.rank + 1", "(comm.rank + 1) - 1", "wrong slice or place"),
        ("dropped call", "comm.barrier()", "pass", "race: not waited for"),
        ("axis", "axis", "0", "wrong adjoint"),
        ("adjoint", "comm.all_gather(g, axis, sizes)", "-(comm.all_gather(g, axis, sizes))", "wrong adjoint"),
    }
    assert expected <= found
    assert not [f for f in found if "axis - 1" in f[1] or "axis < 0" in f[1]], "a refusal"


@pytest.mark.parametrize(
    ("statement", "operator", "after"),
    [
        ("self.mpi.Allreduce(a, b, MPI.SUM)", "reduction operation", "MPI.MAX"),
        ("comm.all_reduce(a, 'max')", "reduction operation", "'sum'"),
        ("total += part", "not accumulated", "total = part"),
        ("total += part", "sign", "total -= part"),
        ("for rank in range(3):\n        pass", "order", "reversed(range(3))"),
        ("y = x[::-1]", "order", "1"),
        ("y[rows] = x", "dropped assignment", "pass"),
        ("comm.broadcast(x, root)", "root", "(comm.size - 1 - root)"),
        ("if not whole:\n        pass", "not", "(whole)"),
        ("y = a if whole else b", "not", "(not whole)"),
        ("x = first and last", "and/or", "((first) or (last))"),
        ("x = a <= b", "comparison", "(a < b)"),
        ("x = count // ranks", "rounding", "(count // (ranks) + 1)"),
        ("f(x, keep=True)", "flag", "False"),
        ("comm.send(x, self.rank - 1)", "sign", "(self.rank + 1)"),
        ("exchange(x, axis, owned, wanted)", "arguments swapped", "wanted, owned"),
        ("self.go_back(self.stage, microbatch)", "arguments swapped", "microbatch, self.stage"),
    ],
)
def test_each_operator(statement, operator, after):
    found = operators.mutants_of(f"def f(x):\n    {statement}\n", "file.py")
    assert after in [m.after for m in found if m.operator == operator]


def test_what_is_found_is_python_and_one_change():
    mutants = campaign.every_mutant()
    assert len(mutants) > 1500
    assert all(mutant.before != mutant.after for mutant in mutants)
    assert {m.file.rpartition("/")[0] for m in mutants} == set(campaign.FILES)
    for mutant in mutants[::50]:
        source = (campaign.ROOT / "parallel_dl" / mutant.file).read_text()
        wrong = mutant.apply(source)
        assert ast.dump(ast.parse(wrong)) != ast.dump(ast.parse(source)), mutant
        assert wrong.replace(mutant.after, "", 1) != wrong
        assert wrong.encode()[: mutant.start] == source.encode()[: mutant.start]


def test_a_sample_comes_from_the_seed_alone():
    mutants = campaign.every_mutant()
    one = campaign.sample(1, 60)
    assert one == campaign.sample(1, 60)
    assert one[:20] == campaign.sample(1, 20)
    assert one != campaign.sample(2, 60)
    assert len(set(one)) == 60
    assert {m.file.rpartition("/")[0] for m in one} == set(campaign.FILES)
    assert {m.kind for m in one} == {m.kind for m in mutants}


def test_equivalents_have_reasons_and_most_are_there():
    """One whose code has changed goes: whether the new one is equivalent has to be looked at anew."""
    today = {mutant.key for mutant in campaign.every_mutant()}
    known = campaign.equivalents()
    assert all(len(reason) > 20 for reason in known.values())
    assert sum(key in today for key in known) > len(known) / 2


def finding(**said):
    names = ("file", "function", "operator", "before", "after")
    return campaign.Finding(**dict.fromkeys(names, "x"), line=1, **{"kind": "order", **said})


def test_the_table_counts():
    found = [
        finding(adjoint="equal", exact="different: a", values="different: b"),
        finding(adjoint="crash: TypeError"),
        finding(adjoint="equal", exact="hang", kind="race: not waited for"),
        finding(adjoint="equal", exact="equal", values="equal", tests="failed: test_x"),
        finding(adjoint="equal", exact="equal", values="equal", tests="passed"),
    ]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in campaign.table(found).splitlines()]
    assert lines[0][1:] == [
        *("planted", "equivalent", "crash", "hang", "values", "whole numbers", "adjoint"),
        *("only stress", "only tests", "nobody"),
    ]
    assert lines[2:] == [
        ["order", *"4010110011"],
        ["race: not waited for", *"1001000000"],
        ["all", *"5011110011"],
    ]
    assert campaign.unseen(found) == [found[-1]]


def test_the_page_has_the_table_of_what_was_found():
    findings = campaign.read(campaign.HERE / "findings.jsonl")
    assert campaign.table(findings) in (campaign.ROOT / "docs" / "verification.md").read_text()
    assert not campaign.unseen(findings)


@pytest.mark.soak
def test_the_sample_is_of_the_code_as_it_is():
    assert len(campaign.found_before()) > 30, "the code has changed: plant a new sample"


def mutant_of(file, before, after):
    (found,) = [m for m in campaign.every_mutant() if (m.file, m.before, m.after) == (file, before, after)]
    return found


def test_a_planted_bug_is_seen_and_nothing_is_left():
    """Gradients that are not summed, on the copy; `make soak` plants a sample of all."""
    mutant = mutant_of("data_parallel/exchange.py", "self.window.all_reduce()", "pass")
    with campaign.Copy() as copy:
        right = (copy.folder / "parallel_dl" / mutant.file).read_text()
        found = copy.judge(mutant, with_tests=False, proof=["exact"])
        assert found.exact.startswith("different: "), found
        assert found.seen_by == ["exact"]
        assert (copy.folder / "parallel_dl" / mutant.file).read_text() == right
        folder = copy.folder
    assert not folder.exists()


@pytest.mark.soak
def test_campaign():
    """What was seen is seen, MUTANTS=N of it (30); with MUTANTS_SEED=SEED a new sample, of which nobody misses one."""
    count, seed = int(os.environ.get("MUTANTS", "30")), os.environ.get("MUTANTS_SEED")
    mutants = campaign.found_before()[:count] if seed is None else campaign.sample(int(seed), count)
    found = campaign.run(mutants)
    print(campaign.table(found))
    assert len(found) == count
    assert not campaign.unseen(found)
