"""Find, prove, describe and load a model."""
