"""One file per SAE file format; the table of readers is in this package."""
