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
- *patterns*: at how many layers what a head looks at can be edited (`EditPattern`), tried on each: a head is cut from
  a token, and what it hands on changes there and not before. Elsewhere the record is refused with the reason: a gate
  or norm behind the heads, compressed keys, linear attention, keys of another layer.

Of {count} architectures {steer} steer; {whole} have patterns to edit at every layer, {some} more at some.

| architecture | steers | blocks at | more sites | adds up | patterns | remarks |
|---|---|---|---|---|---|---|
"""


def counted(lines: list[str]) -> dict[str, int]:
    """How many architectures there are, how many steer, and how many have patterns to edit: all layers, or some."""
    columns = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    patterns = [each[5] for each in columns if each[1] == "yes"]
    some = sum(each.endswith("layers") for each in patterns)
    return {"count": len(lines), "steer": len(patterns), "whole": patterns.count("yes"), "some": some}


def main() -> None:
    """Examine every architecture and write the table."""
    import mlx.core as mx

    from tests.lens import architectures, examine

    mx.disable_compile()
    lines = [examine.row(name) for name in architectures.names()]
    head = HEAD.format(version=version("mlx-lm"), **counted(lines))
    text = head + "\n".join(lines) + "\n"
    (HERE / "architectures.md").write_text(text)


if __name__ == "__main__":
    main()
