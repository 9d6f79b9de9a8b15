"""Which instrument sees which bug: plants the mutants of a seeded sample one at a time, in a copy of the package.

    python tests/mutation/campaign.py --seed 1 --count 60 --output found.jsonl    # goes on where it was stopped
    python tests/mutation/campaign.py --again --output found.jsonl                # with tests that are new since then
    python tests/mutation/campaign.py --list                                      # what there is to plant
    python tests/mutation/campaign.py --table found.jsonl                         # what was found, by kind of bug

First the proof is asked (`instruments.py`: adjoints, whole numbers, values, and values under stress, on 4 ranks);
then, for mutants that it does not see, the tests of the package. Mutants that change nothing that is computed are in
`equivalent.toml`, each with its reason, and are counted apart.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from operators import Mutant, mutants_of

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
INSTRUMENTS = ("adjoint", "exact", "values", "stress")
# package, "" for the outermost -> its files that say what ranks send, sum and cut
FILES = {
    "": ("global_norms", "whole"),
    "mesh": ("moves", "placement", "reshard", "shape"),
    "mpi": ("buffers", "collectives", "copies", "mesh", "messages", "reductions", "shards", "window"),
    "data_parallel": ("batch_norm", "buckets", "changes", "exchange", "gradients", "replicas"),
    "model_parallel": ("axis", "carry_out", "linear", "network"),
    "pipeline_parallel": ("messages", "network", "runner"),
    "hybrid": ("exchange", "one_weird_trick"),
    "splits": (
        *("branches", "convolution", "cut_at_flatten", "default", "elementwise", "leaves", "linear", "loss"),
        *("normalization", "plan", "pooling", "rule", "samples", "tiles", "walk"),
    ),
}
# file, or package -> the tests that are asked
TESTS = {
    "mpi": ("mpi/test_communicator.py", "mpi/test_sums_in_tree.py"),
    "mpi/collectives.py": ("mpi/test_adjoints.py", "mpi/test_unequal_tapes.py", "autograd/test_collective.py"),
    "mpi/window.py": ("mpi/test_window.py",),
    "mpi/mesh.py": ("mpi/test_mesh.py",),
    "data_parallel": ("data_parallel", "test_evaluation.py"),
    "model_parallel": (
        *("model_parallel/test_direct_layers.py", "model_parallel/test_splits_equal_serial.py"),
        *("model_parallel/test_splits_bitwise.py", "test_evaluation.py"),
    ),
    "whole.py": ("model_parallel/test_whole_weights.py", "test_evaluation.py", "pipeline_parallel"),
    "global_norms.py": ("equivalence/test_norms.py",),
    "splits/loss.py": ("model_parallel/test_split_losses.py",),
    "mesh": ("mesh", "splits", "model_parallel/test_reshard.py", "model_parallel/test_splits_equal_serial.py"),
    "model_parallel/network.py": (
        *("test_evaluation.py", "model_parallel/test_split_losses.py", "model_parallel/test_whole_weights.py"),
        *("model_parallel/test_refusals.py", "model_parallel/test_ledger_of_splits.py"),
    ),
    "pipeline_parallel": ("test_evaluation.py", "pipeline_parallel"),
    "hybrid": ("test_evaluation.py", "hybrid"),
    "splits": (
        *("splits", "model_parallel/test_splits_equal_serial.py", "model_parallel/test_ledger_of_splits.py"),
        *("model_parallel/test_how_it_is_computed.py", "reproducible/test_same_bits_in_every_layout.py"),
    ),
}
PROOF_SECONDS, TESTS_SECONDS = 90.0, 600.0  # only to end hangs


@dataclasses.dataclass
class Finding:
    """What became of a mutant."""

    file: str
    line: int
    function: str
    operator: str
    kind: str
    before: str
    after: str
    number: int = 1
    adjoint: str = "not asked"
    """as `exact` and `values`: equal, different (and where), crash, hang, or not asked after one of these"""
    exact: str = "not asked"
    values: str = "not asked"
    stress: str = "not asked"
    """only for mutants that the three instruments above do not see"""
    tests: str = "not asked"
    """passed, failed, hang, or not asked, since the proof has seen it"""
    seconds: float = 0.0

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """That of the mutant."""
        return self.file, self.function, self.before, self.after, self.number

    @property
    def seen_by(self) -> list[str]:
        """The instruments that saw it; a `crash` or `hang` of the proof's job counts as one."""
        found = {name: getattr(self, name).partition(":")[0] for name in INSTRUMENTS}
        seen = [name for name, said in found.items() if said == "different" or (name == "stress" and said == "crash")]
        seen += [loud for loud in ("crash", "hang") if loud in found.values() and "stress" not in seen]
        return seen + (["tests"] if self.tests not in ("passed", "not asked") else [])


# -- the set -------------------------------------------------------------------------------------------------------
@functools.cache
def every_mutant() -> tuple[Mutant, ...]:
    """Of all files, in order."""
    found: list[Mutant] = []
    for package, names in FILES.items():
        for name in names:
            path = f"{package}/{name}.py".removeprefix("/")
            found += mutants_of((ROOT / "parallel_dl" / path).read_text(), path)
    return tuple(found)


def sample(seed: int, count: int) -> list[Mutant]:
    """So many of them, from the seed: kinds of bugs in turn, and of one kind the packages in turn.

    A longer sample of one seed begins with the shorter one; where the code changes, other mutants stay in their order.
    """
    rng = random.Random(seed)
    by_kind: dict[str, dict[str, list[Mutant]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for mutant in every_mutant():
        by_kind[mutant.kind][mutant.file.rpartition("/")[0]].append(mutant)
    queues = []
    for kind in sorted(by_kind):
        packages = [by_kind[kind][package] for package in sorted(by_kind[kind])]
        for one in packages:
            one.sort(key=lambda mutant: hashlib.sha256(repr((seed, *mutant.key)).encode()).digest())
        rng.shuffle(packages)
        queues.append(list(_in_turn(packages)))
    return [mutant for mutant, _ in zip(_in_turn(queues), range(count))]


def _in_turn(queues: list[list[Mutant]]) -> Iterator[Mutant]:
    for turn in range(max(map(len, queues), default=0)):
        yield from (queue[turn] for queue in queues if turn < len(queue))


def found_before() -> list[Mutant]:
    """The mutants of `findings.jsonl` that there still are, in its order."""
    today = {mutant.key: mutant for mutant in every_mutant()}
    return [today[finding.key] for finding in read(HERE / "findings.jsonl") if finding.key in today]


@functools.cache
def equivalents() -> dict[tuple[str, str, str, str, int], str]:
    """Mutant.key -> the reason why it computes the same."""
    found = {}
    for entry in tomllib.loads((HERE / "equivalent.toml").read_text())["mutant"]:
        for number in entry.get("numbers", [1]):
            found[entry["file"], entry["function"], entry["before"], entry["after"], number] = entry["reason"]
    return found


def tests_of(file: str) -> tuple[str, ...]:
    """Which tests are asked about a file."""
    return TESTS.get(file) or TESTS[file.partition("/")[0]]


# -- one mutant ----------------------------------------------------------------------------------------------------
class Copy:
    """The package, its tests and their settings in a temporary folder, in which mutants are planted."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mutants-"))
        leave = shutil.ignore_patterns("__pycache__", ".pytest_cache", ".hypothesis")
        for name in ("parallel_dl", "tests", "docs"):
            shutil.copytree(ROOT / name, self.folder / name, ignore=leave)
        for name in ("setup.cfg", "pyproject.toml", "README.md", "Makefile"):
            shutil.copy(ROOT / name, self.folder)
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self.environment = {**os.environ, **threads, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        for name in ("PARALLEL_DL_JOB", "PYTEST_ADDOPTS"):
            self.environment.pop(name, None)

    def __enter__(self) -> Copy:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder)

    def judge(
        self,
        mutant: Mutant,
        earlier: Finding | None = None,
        with_tests: bool = True,
        proof: Sequence[str] = INSTRUMENTS,
    ) -> Finding:
        """Plants the mutant, asks the instruments that were not asked `earlier`, and takes it out again."""
        facts = dataclasses.asdict(mutant)
        fields = ("file", "line", "function", "operator", "kind", "before", "after", "number")
        finding = earlier or Finding(**{name: facts[name] for name in fields})
        start = time.perf_counter()
        file = self.folder / "parallel_dl" / mutant.file
        right = file.read_text()
        file.write_text(mutant.apply(right))
        try:
            if earlier is None:
                self._proof(finding, proof)
            if with_tests and not finding.seen_by:
                finding.tests = self._tests(mutant.file)
        finally:
            file.write_text(right)
        finding.seconds = round(finding.seconds + time.perf_counter() - start, 1)
        return finding

    def _proof(self, finding: Finding, instruments: Sequence[str]) -> None:
        """These instruments in one job, up to a crash or a hang."""
        told = self.folder / "told.jsonl"
        told.unlink(missing_ok=True)
        program = [str(self.folder / "tests" / "mutation" / "instruments.py"), str(told), str(PROOF_SECONDS)]
        command = [sys.executable, "-m", "parallel_dl", "run", "-n", "4", *program, *instruments]
        status, said = self._run(command, PROOF_SECONDS + 30)
        lines = [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []
        for name, found in lines:
            setattr(finding, name, found)
        if status != 0:
            hang = status is None or "Timeout (" in said
            asked = instruments[min(len(lines), len(instruments) - 1)]
            setattr(finding, asked, "hang" if hang else f"crash: {_last_error(said)}")

    def _tests(self, file: str) -> str:
        paths = [str(self.folder / "tests" / name) for name in tests_of(file)]
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            "-o",
            "ranks_timeout=60",
            *paths,
        ]
        status, said = self._run(command, TESTS_SECONDS)
        failed = [line.split(" - ")[0] for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return "hang" if status is None else "passed" if status == 0 else f"failed: {' '.join(failed)[:160]}"

    def _run(self, command: list[str], seconds: float) -> tuple[int | None, str]:
        """(exit status, what it said) in a session of its own; None when it had to be ended."""
        with tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=said, stderr=said, start_new_session=True
            )
            status = None
            try:
                status = process.wait(seconds)
            except subprocess.TimeoutExpired:
                pass
            finally:
                if process.poll() is None:
                    _end(process)
            said.seek(0)
            return status, said.read()


def _end(process: subprocess.Popen) -> None:
    """Ends a program of its own session, and first lets it end the ranks that it has started."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        os.killpg(process.pid, number)
        try:
            process.wait(60)
            return
        except subprocess.TimeoutExpired:
            continue


def _last_error(said: str) -> str:
    errors = [line for line in said.splitlines() if "Error" in line or "signal" in line]
    return errors[-1].strip()[:120] if errors else "no message"


# -- what is said --------------------------------------------------------------------------------------------------
def read(path: str | Path) -> list[Finding]:
    """The findings of a file that a campaign has written."""
    lines = Path(path).read_text().splitlines() if Path(path).exists() else []
    found = [Finding(**json.loads(line)) for line in lines]
    return list({finding.key: finding for finding in found}.values())  # a later line takes the place of an earlier one


def table(findings: list[Finding]) -> str:
    """By kind of bug, how many were planted, and which instrument saw them; in Markdown."""
    known = equivalents()
    columns = ("planted", "equivalent", "crash", "hang", "values", "whole numbers", "adjoint", "only stress")
    columns += ("only tests", "nobody")
    rows: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for finding in findings:
        same = finding.key in known
        counts = ["planted"]
        if same and not finding.seen_by:
            counts.append("equivalent")
        else:
            names = {"exact": "whole numbers", "stress": "only stress", "tests": "only tests"}
            counts += [names.get(name, name) for name in finding.seen_by] or ["nobody"]
        for row in (finding.kind, "all"):
            rows[row].update(counts)
    lines = ["| kind of bug | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    for kind in [*sorted(rows.keys() - {"all"}), "all"]:
        lines.append(f"| {kind} | " + " | ".join(str(rows[kind][column]) for column in columns) + " |")
    return "\n".join(lines)


def unseen(findings: list[Finding]) -> list[Finding]:
    """Those that nobody saw and that are not known to be equivalent."""
    known = equivalents()
    return [finding for finding in findings if not finding.seen_by and finding.key not in known]


def run(
    mutants: Sequence[Mutant], output: str | None = None, with_tests: bool = True, again: bool = False
) -> list[Finding]:
    """Judges them one after the other; what is in `output` already is not asked again, unless nobody saw it then."""
    earlier = {finding.key: finding for finding in read(output)} if output else {}
    known, found = equivalents(), []
    with Copy() as copy:
        for number, mutant in enumerate(mutants, start=1):
            before = earlier.get(mutant.key)
            if again and before is not None and not before.seen_by:
                before = None
            asked = before is not None and (before.tests != "not asked" or not with_tests or mutant.key in known)
            if before is not None and (asked or before.seen_by):
                found.append(before)
                continue
            finding = copy.judge(mutant, before, with_tests and mutant.key not in known)
            found.append(finding)
            print(f"{number} {mutant}: {', '.join(finding.seen_by) or 'NOBODY'} ({finding.seconds} s)", flush=True)
            if output:
                with open(output, "a") as file:
                    file.write(json.dumps(dataclasses.asdict(finding)) + "\n")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--part", default="1/1", metavar="K/N", help="every N-th of the sample, from number K on")
    parser.add_argument("--output", help="a file to which findings are added, line by line")
    parser.add_argument("--again", action="store_true", help="ask again about those of --output that nobody has seen")
    parser.add_argument("--proof", action="store_true", help="do not ask the tests")
    parser.add_argument("--list", action="store_true", help="only say what would be planted")
    parser.add_argument("--table", metavar="FILE", nargs="+", help="only say what was found")
    arguments = parser.parse_args()
    if arguments.table:
        print(table([finding for path in arguments.table for finding in read(path)]))
        return 0
    part, parts = map(int, arguments.part.split("/"))
    mutants = sample(arguments.seed, arguments.count)[part - 1 :: parts]
    if arguments.list:
        print(*mutants, sep="\n")
        return 0
    if arguments.again:
        known = {finding.key for finding in unseen(read(arguments.output))}
        mutants = [mutant for mutant in every_mutant() if mutant.key in known]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    found = run(mutants, arguments.output, not arguments.proof, arguments.again)
    print(table(found))
    left = unseen(found)
    print(*(f"nobody: {f.file}:{f.line} {f.function}: {f.before} -> {f.after}" for f in left), sep="\n")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
