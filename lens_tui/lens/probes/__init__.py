"""Probes: what is linearly readable of activations, layer by layer, and how sure that is."""
