"""Write architectures.md: what each architecture of the installed mlx-lm can do here, found on a tiny random model.

Run from the repository: ``python docs/make_architectures.py``. The tests check every line.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

HEAD = """# Architectures

Written by `docs/make_architectures.py` from mlx-lm {version}; `tests/lens/architecture/test_architectures.py` checks
every line on a tiny random model of the architecture: at each layer the captured residual equals what the block was
given and gave, a steered forward equals one in which other code adds the vector, the unsteered model is untouched,
and steered generation equals the same steps over mlx-lm's own cache with that other code.

- *steers*: steering, capture and generation at `resid_pre` and `resid_post` of every layer.
- *blocks at*: where the decoder blocks are in the module tree.
- *more sites*: sites inside the blocks that can be proved; in brackets those that only some layers have.
  `mlp_normed`, which is computed of `mlp_in`, is where the MLP has an RMS or layer norm of its own.
- *adds up*: each block's change of the residual is the sum of what its attention and its MLP give (`attn_out` and
  `mlp_out`, or the normed ones where there are any). Where it is not, the block scales them or adds something else.

| architecture | steers | blocks at | more sites | adds up | remarks |
|---|---|---|---|---|---|
"""


def main() -> None:
    """Examine every architecture and write the table."""
    import mlx.core as mx

    from tests.lens import architectures, examine

    mx.disable_compile()
    lines = [examine.row(name) for name in architectures.names()]
    text = HEAD.format(version=version("mlx-lm")) + "\n".join(lines) + "\n"
    (HERE / "architectures.md").write_text(text)


if __name__ == "__main__":
    main()
