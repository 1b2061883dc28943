"""The kinds of SAE, one class an activation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import mlx.core as mx

from .base import SAE
from .files import Activation
from .matrices import Best, Residence, largest, row_chunks


class StandardSAE(SAE):
    """ReLU latents (Bricken et al. 2023, "Towards Monosemanticity")."""

    activation: ClassVar[Activation] = "relu"


class JumpReLUSAE(SAE):
    """Latents that are zero up to a threshold each has learnt (Rajamanoharan et al. 2024, arXiv:2407.14435).

    BatchTopK and Matryoshka SAEs are used in this form too: in training the threshold is that of a batch, afterwards it
    is fixed (Bussmann et al. 2024, arXiv:2412.06410).
    """

    activation: ClassVar[Activation] = "jumprelu"

    @property
    def threshold(self) -> mx.array:
        """The threshold of each latent, ``(d_sae,)``: it is active where its pre-activation is above."""
        return self._vectors["threshold"]

    @classmethod
    def from_gemma_scope(
        cls,
        model_id: str = "google/gemma-scope-2-27b-it",
        layer: int = 16,
        width: str = "16k",
        variant: str = "l0_small",
        site: str = "resid_post",
        revision: str | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
        residence: Residence | None = None,
        dtype: mx.Dtype = mx.float32,
        cache_dir: str | Path | None = None,
    ) -> JumpReLUSAE:
        """Load a Gemma Scope 2 SAE or transcoder, fetching its two files if they are not in the hub's cache.

        Four layers of each model have folders of their own; for what is not in those, the folder ``{site}_all`` is
        used. ``info.provenance["folder"]`` says which.

        Args:
            model_id: the repository, ``google/gemma-scope-2-{270m,1b,4b,12b,27b}-{pt,it}``.
            layer: the decoder block, from 0.
            width: ``16k``, ``65k``, ``262k`` or ``1m``.
            variant: ``l0_small``, ``l0_medium`` or ``l0_big``; with ``_affine`` a transcoder with a skip connection.
            site: ``resid_post``, ``mlp_out``, ``attn_out`` or ``transcoder``.
            revision: the hub's branch, tag or commit.
            progress: called with the bytes fetched and their total.
            residence: as for :func:`lens_tui.load_sae`.
            dtype: as for :func:`lens_tui.load_sae`.
            cache_dir: the hub's cache; by default the usual one.

        Raises:
            LensError: for a repository, layer, width or variant that does not exist, naming those that do.
        """
        from .from_hub import fetch_gemma_scope

        folder, facts = fetch_gemma_scope(model_id, layer, width, variant, site, revision, progress, cache_dir)
        return cls.from_pretrained(folder, residence=residence, dtype=dtype, extra_provenance=facts)

    def _activate(self, product: mx.array, columns: slice | mx.array) -> mx.array:
        pre = product + self._vectors["b_enc"][columns]
        # Asked this way round, a NaN stays one: silence would be the wrong answer.
        silent = pre <= self._vectors["threshold"][columns]
        return self._scaled(mx.where(silent, 0, mx.maximum(pre, 0)), columns)


class GatedSAE(SAE):
    """Latents with a gate and a magnitude of their own (Rajamanoharan et al. 2024, arXiv:2404.16014)."""

    activation: ClassVar[Activation] = "gated"

    def _activate(self, product: mx.array, columns: slice | mx.array) -> mx.array:
        b_gate, b_mag, r_mag = (self._vectors[name][columns] for name in ("b_gate", "b_mag", "r_mag"))
        magnitude = mx.maximum(product * mx.exp(r_mag) + b_mag, 0)
        return self._scaled(mx.where(product + b_gate <= 0, 0, magnitude), columns)


class TopKSAE(SAE):
    """The ``k`` largest latents of each token and no others (Gao et al. 2024, arXiv:2406.04093)."""

    activation: ClassVar[Activation] = "topk"

    @property
    def k(self) -> int:
        """The most latents that are active on a token."""
        return self.definition.k

    @property
    def _most(self) -> int:
        return self.definition.k

    def _compete(self, activations: mx.array) -> mx.array:
        ids, values = largest(activations, self.k)
        return mx.put_along_axis(mx.zeros_like(activations), ids, values, axis=-1)

    def _decoded(self, ready: mx.array) -> tuple[mx.array, mx.array]:
        outs, counts = [], []
        for rows in row_chunks(ready.shape[0]):
            best = self._best(ready[rows], self.k)
            outs.append(self._decoder.sparse(best.ids, best.values))
            counts.append(mx.sum(best.values > 0, axis=-1).astype(mx.int32))
        return mx.concatenate(outs), mx.concatenate(counts)


class GroupMaxSAE(TopKSAE):
    """The largest latent of each of ``k`` runs of neighbouring latents (EleutherAI's sparsify, ``groupmax``)."""

    activation: ClassVar[Activation] = "groupmax"

    def _compete(self, activations: mx.array) -> mx.array:
        ids, values = self._winners(activations)
        return mx.put_along_axis(mx.zeros_like(activations), ids, values, axis=-1)

    def _best(self, x: mx.array, k: int) -> Best:
        blocks = [self._block(x, block) for block in range(len(self._encoder.spans))]
        ids, values = self._winners(mx.concatenate(blocks, axis=-1))
        if k < self.k:
            place, values = largest(values, k)
            ids = mx.take_along_axis(ids, place, axis=1)
        return Best(ids, values)

    def _winners(self, activations: mx.array) -> tuple[mx.array, mx.array]:
        size = self.d_sae // self.k
        grouped = activations.reshape(-1, self.k, size)
        ids = mx.argmax(grouped, axis=-1).astype(mx.int32) + mx.arange(self.k, dtype=mx.int32) * size
        return ids, mx.max(grouped, axis=-1)
