"""Sections of benchmarks/gpu.py, one a file: each has `run(job)`."""
