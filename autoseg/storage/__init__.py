"""Atomic writes, locks between processes, cached results."""
