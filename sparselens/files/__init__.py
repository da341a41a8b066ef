"""Atomic file writes, files of results, strict JSON, and locks on output folders."""
