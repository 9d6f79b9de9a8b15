"""`python -P PATH/launch/__main__.py (-m MODULE | SCRIPT) [ARGUMENT ...]` is what our launcher runs as each rank."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # the package that the launcher is of, wherever it was imported from
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from parallel_dl.launch.rank import main

    del sys.path[0]
    main()
