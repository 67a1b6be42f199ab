"""Public data sets: download, preparation, published splits."""
