"""`python -m parallel_dl.launch (-m MODULE | SCRIPT) [ARGUMENT ...]` is what our launcher runs as each rank."""

from parallel_dl.launch.rank import main

if __name__ == "__main__":
    main()
