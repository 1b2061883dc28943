"""mlx-lens 0.1.2, for tests that hold this library against it; they are skipped where it is not installed."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any
from unittest.mock import patch

import pytest

mlx_lens: Any = pytest.importorskip("mlx_lens")
if version("mlx-lens") != "0.1.2":
    pytest.skip("what is said here is said of mlx-lens 0.1.2", allow_module_level=True)


def peer(model: Any, tokenizer: Any = None) -> Any:
    """Their ``LensModel`` around a model that is in memory."""
    with patch.object(mlx_lens.model, "_mlx_load", lambda _path: (model, tokenizer)):
        return mlx_lens.LensModel("in memory")
