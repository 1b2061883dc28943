"""Sparse autoencoders: what they compute, file formats, training, indexes of their features.

Their public names are in :mod:`lens_tui`.
"""
