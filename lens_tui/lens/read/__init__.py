"""Readouts: logit lens, attribution, attention and activations."""
