"""The checks of `gpu_check.py`, each a function of a `Bench` that returns figures and faults."""
