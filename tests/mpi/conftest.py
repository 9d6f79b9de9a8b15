"""Tests on ranks run in checked mode: a rank that calls something else than the others is reported, not waited for."""

import os

os.environ.setdefault("PARALLEL_DL_CHECKED", "1")
