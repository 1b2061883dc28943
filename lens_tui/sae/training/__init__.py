"""Train sparse autoencoders on a model's activations."""

from lens_tui.records.training import Evaluation, TrainConfig, TrainProgress, TrainReport

from .run import train

__all__ = ["Evaluation", "TrainConfig", "TrainProgress", "TrainReport", "train"]
