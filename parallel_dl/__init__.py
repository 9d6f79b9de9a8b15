"""Parallel deep learning from scratch on NumPy and MPI."""

__version__ = "0.1.0"
