"""`python -P PATH/launch/__main__.py (-m MODULE | SCRIPT) [ARGUMENT ...]` is what our launcher runs as each rank."""

import os
import sys

if __name__ == "__main__":
    # the launcher's own package, wherever it was imported from
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__)))))
    from parallel_dl import interrupts

    interrupts.end_at_once("parallel-dl: a rank was interrupted (SIGINT) while it started")  # imports take a moment
    from parallel_dl.launch.rank import main

    del sys.path[0]
    main()
