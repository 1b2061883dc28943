"""Labels of the bundled SAE's features: material to write them from, a quiz on held-out text, and their scores."""
