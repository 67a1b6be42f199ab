"""Public data sets: reading of downloads, preparation, published splits."""
