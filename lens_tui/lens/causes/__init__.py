"""Which part of a model did it: patching, tracing and gradients."""
