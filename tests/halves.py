"""The suite in two halves at once, on two cores: the tests that mostly start programs and wait, and all others.

`python tests/halves.py [ARGUMENT OF PYTEST ...]`; plain `pytest` runs the same tests one after the other. The status is
the first half's that is not 0.
"""

import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parent
PAGES = ["test_docs.py", "test_own_layer_examples.py"]  # whose examples are run
PROGRAMS = ["launch", "cli", "testing", "mutation", "fuzz", "reproducible", *PAGES]


def main(arguments: list[str]) -> int:
    """Runs both, and prints what the second half has said after the first."""
    paths = [str(TESTS / name) for name in PROGRAMS]
    pytest = [sys.executable, "-m", "pytest", "-q", *arguments]
    with contextlib.ExitStack() as files:
        said = files.enter_context(tempfile.TemporaryFile("w+"))
        programs = subprocess.Popen([*pytest, *paths], stdout=said, stderr=subprocess.STDOUT)
        others = subprocess.Popen([*pytest, str(TESTS), *(f"--ignore={path}" for path in paths)])
        try:
            statuses = [others.wait()]
            print("and, at the same time, those that start programs:", flush=True)
            statuses.append(programs.wait())
        except KeyboardInterrupt:  # which both have got, too
            statuses = [others.wait(), programs.wait()]
        said.seek(0)
        print(said.read(), end="", flush=True)
    return next((status for status in statuses if status), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
