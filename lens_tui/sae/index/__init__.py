"""The feature index: one pass over a corpus, then every question about a feature answered from disk.

Reading needs NumPy alone; only building meets a device, and only through the
SAE it is given.
"""

from .build import BuildResult, IndexProgress, Target, build_index, merge_parts
from .read import Example, FeatureIndex, FeatureStatistics
from .settings import DEFINITIONS, EDGES, Identity, IndexSettings, index_key
from .tables import TokenTable, token_table

__all__ = [
    "DEFINITIONS",
    "EDGES",
    "BuildResult",
    "Example",
    "FeatureIndex",
    "FeatureStatistics",
    "Identity",
    "IndexProgress",
    "IndexSettings",
    "Target",
    "TokenTable",
    "build_index",
    "index_key",
    "merge_parts",
    "token_table",
]
