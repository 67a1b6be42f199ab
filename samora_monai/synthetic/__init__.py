"""Synthetic scans and shapes."""
