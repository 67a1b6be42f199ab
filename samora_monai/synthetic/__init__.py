"""Synthetic data: abdominal phantoms and textured shapes."""
