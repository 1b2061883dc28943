"""The feature index: one pass over a corpus, then every question about a feature answered from disk.

Reading needs NumPy alone; only building meets a device, and only through the
SAE it is given.
"""

from .build import BuildResult, IndexProgress, Target, build_index, merge_parts
from .export import upload_batches
from .finish import add_tables
from .questions import (
    TextFeatures,
    co_active,
    contrast,
    decoder_neighbours,
    direct_effects,
    promoting,
    rank_features,
    text_features,
)
from .read import Description, Example, FeatureIndex, FeatureStatistics, describe
from .settings import DEFINITIONS, EDGES, Identity, IndexSettings, index_key
from .tables import TokenTable, token_table

__all__ = [
    "DEFINITIONS",
    "EDGES",
    "BuildResult",
    "Description",
    "Example",
    "FeatureIndex",
    "FeatureStatistics",
    "Identity",
    "IndexProgress",
    "IndexSettings",
    "Target",
    "TextFeatures",
    "TokenTable",
    "add_tables",
    "build_index",
    "co_active",
    "contrast",
    "decoder_neighbours",
    "describe",
    "direct_effects",
    "index_key",
    "merge_parts",
    "promoting",
    "rank_features",
    "text_features",
    "token_table",
    "upload_batches",
]
