"""Sparse autoencoders: architectures, file formats, reading features."""
