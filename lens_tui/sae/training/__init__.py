"""Train sparse autoencoders on a model's activations."""
