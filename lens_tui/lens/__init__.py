"""The interpretability library: models, interventions, capture, generation, readouts."""
