"""A user's script on several ranks, compared with its run on one rank.

To read in this order:

    files.py       what a rank writes down at each update, and how it is read again
    recording.py   inside a rank: runs the script, and writes it down
    watched.py     `watch`: what the user's own program adds to it
    runs.py        starts the script, each time in a folder of its own
    whole.py       the ranks' parts put together
    shares.py      which ranks share the samples of a batch among them
    causes.py      what the difference of two gradients looks like
    compared.py    where two runs part first, and why
    assertion.py   the same in a test
"""

from parallel_dl.equivalence.scripts.assertion import assert_same_program
from parallel_dl.equivalence.scripts.compared import Verdict, compare_runs
from parallel_dl.equivalence.scripts.runs import ScriptRun, run_script
from parallel_dl.equivalence.scripts.watched import watch

__all__ = ["ScriptRun", "Verdict", "assert_same_program", "compare_runs", "run_script", "watch"]
