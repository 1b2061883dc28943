"""The bundled model's SAEs: the product's own trainer with the shipped settings, and the copy that is shipped."""

from __future__ import annotations

import shutil
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lens_tui.records.training import Evaluation, TrainConfig, TrainProgress, TrainReport
from recipes.corpus import HELD_OUT_EVERY

NAME = "demo"
"""What the SAEs' config.json calls the model: the name that the app opens the bundled model by."""

SETTINGS = TrainConfig(
    width=8192,
    k=39,
    architecture="batchtopk",
    batch=12_288,
    learning_rate=1e-3,
    warmup=0.02,
    decay=0.4,
    dead_after=2_000_000,
    aux_slots=512,
    pool_tokens=1 << 20,
    calibration_tokens=1 << 18,
    evaluation_tokens=1 << 19,
    compute="bfloat16",
)
"""What the three have in common; ``k`` is 39 so that the mean L0 on other text stays at 40 or below."""


@dataclass(frozen=True, slots=True)
class Depth:
    """A shipped SAE: block (from 0), width and training length in steps of ``SETTINGS.batch`` tokens."""

    layer: int
    width: int
    steps: int

    @property
    def folder(self) -> str:
        """Its folder's name, in Gemma Scope 2's way."""
        return f"layer_{self.layer}_width_{self.width // 1024}k_l0_medium"


DEPTHS = {"early": Depth(2, 4096, 3658), "middle": Depth(4, 8192, 11_759), "late": Depth(6, 4096, 7058)}


def settings(depth: Depth, **changes: Any) -> TrainConfig:
    """The shipped settings at a depth, with changes."""
    return replace(SETTINGS, **{"width": depth.width, "tokens": depth.steps * SETTINGS.batch, **changes})


def train(
    model: Path,
    corpus: Path,
    depth: Depth,
    config: TrainConfig,
    out: Path,
    *,
    context: int = 512,
    rows: int = 128,
    progress: Callable[[TrainProgress], None] | None = None,
) -> TrainReport:
    """Train the SAE of a depth with ``lens_tui.train_sae`` into ``out`` and write what ships to ``out/ship``.

    ``model`` is the bfloat16 export: the shipped 8-bit copy computes in float32, which is slower on a GPU and
    gives nearly the same activations. ``corpus`` is the folder or archive that the model was trained on.
    Run again, it goes on where it stopped.
    """
    from lens_tui import LensModel
    from lens_tui.tasks.train import train_sae

    report = train_sae(
        LensModel(str(model)),
        unpacked(corpus, out),
        out / "run",
        config,
        layer=depth.layer,
        context=context,
        rows=rows,
        held_out=HELD_OUT_EVERY,
        model_name=NAME,
        progress=progress,
    )
    if not report.stopped:
        ship(out / "run", out / "ship" / depth.folder)
    return report


def unpacked(corpus: Path, out: Path) -> Path:
    """A folder with the corpus' files: itself, or an archive's contents under ``out``."""
    if corpus.is_dir():
        return corpus
    folder = out / "corpus"
    if not folder.exists():
        part = out / "corpus.part"
        with tarfile.open(corpus) as archive:
            archive.extractall(part, [m for m in archive if m.name.endswith(".txt")], filter="data")
        part.rename(folder)
    return folder


def ship(run: Path, out: Path) -> None:
    """Copy a finished run's SAE with its two matrices in 8 bits, a quarter of the size; vectors stay float32."""
    import mlx.core as mx
    import numpy as np

    from lens_tui.sae.files import in_eight_bits

    loaded: Any = mx.load(str(run / "params.safetensors"))
    arrays = {name: value.astype(mx.float32) for name, value in loaded.items()}
    made = in_eight_bits(np.array(arrays["w_enc"]), np.array(arrays["w_dec"]))
    out.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(
        str(out / "params.safetensors"), arrays | {name: mx.array(value) for name, value in made.items()}
    )
    shutil.copyfile(run / "config.json", out / "config.json")


def printer(every: float = 10.0) -> Callable[[TrainProgress], None]:
    """Prints where a run is, at most once in ``every`` seconds."""
    last = time.monotonic()

    def show(at: TrainProgress) -> None:
        nonlocal last
        if at.fvu is None or at.l0 is None or time.monotonic() - last < every:
            return
        last = time.monotonic()
        place = f"step {at.step}/{at.steps}  {at.tokens_per_s:,.0f} tokens/s"
        print(f"{place}  FVU {at.fvu:.4f}  L0 {at.l0:.1f}", flush=True)

    return show


def figures(final: Evaluation) -> str:
    """One line of the figures on held-out text."""
    recovered = "" if final.loss_recovered is None else f"  loss recovered {final.loss_recovered:.4f}"
    shares = f"  dead {final.dead:.2%}  dense {final.dense:.2%}"
    return f"FVU {final.fvu:.4f}  L0 {final.l0:.2f}{recovered}{shares}  ({final.n_tokens:,} held-out tokens)"
