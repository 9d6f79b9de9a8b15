"""Speed as ratios taken in one run: `make bench`, or one of the modules by itself."""
