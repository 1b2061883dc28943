"""Look inside language models and push on them.

The names below are the public face of the library: models, steering, vectors, measures, readouts, SAEs and feature
indexes. Plain data (what comes out of them, and every record) is in :mod:`lens_tui.records`; other modules are for
code that builds on this library. Each name is imported the first time it is used, so ``import lens_tui`` costs
nothing and brings in neither MLX nor Textual.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lens_tui import blas

from .lazy import lazy

__version__ = "0.2.0"

if TYPE_CHECKING:
    from .lens.causes.direct_paths import patch_edges as patch_edges
    from .lens.causes.direct_paths import path_patch as path_patch
    from .lens.causes.gradients import gradients as gradients
    from .lens.causes.gradients import integrated_gradients as integrated_gradients
    from .lens.causes.metrics import Metric as Metric
    from .lens.causes.metrics import log_probability as log_probability
    from .lens.causes.metrics import logit_difference as logit_difference
    from .lens.causes.patching import patch as patch
    from .lens.causes.tracing import causal_trace as causal_trace
    from .lens.decode.batch import BatchGeneration as BatchGeneration
    from .lens.decode.compare import Comparison as Comparison
    from .lens.decode.compare import Generation as Generation
    from .lens.graphs.build_graph import Attribution as Attribution
    from .lens.graphs.build_graph import attribute as attribute
    from .lens.graphs.build_graph import attribution_graph as attribution_graph
    from .lens.graphs.edge_checks import check_nodes as check_nodes
    from .lens.graphs.edge_checks import node_vector as node_vector
    from .lens.hooks.capture_result import CaptureResult as CaptureResult
    from .lens.hooks.steering import Steering as Steering
    from .lens.measure.dose import FeatureProbe as FeatureProbe
    from .lens.measure.dose import behaviour as behaviour
    from .lens.measure.dose import dose_response as dose_response
    from .lens.measure.effects import LOSS_TEXTS as LOSS_TEXTS
    from .lens.measure.effects import controlled as controlled
    from .lens.measure.effects import controls as controls
    from .lens.measure.effects import degeneration as degeneration
    from .lens.measure.effects import delta_loss as delta_loss
    from .lens.measure.effects import delta_losses as delta_losses
    from .lens.measure.effects import divergence as divergence
    from .lens.measure.effects import perplexity as perplexity
    from .lens.measure.effects import read_back as read_back
    from .lens.measure.search import find_scale as find_scale
    from .lens.model import LensModel as LensModel
    from .lens.probes.probe_texts import evaluate_probe as evaluate_probe
    from .lens.probes.probe_texts import sparse_probe as sparse_probe
    from .lens.probes.probe_texts import train_probes as train_probes
    from .lens.read.attention import attention_patterns as attention_patterns
    from .lens.read.attention import head_outputs as head_outputs
    from .lens.read.jacobian import fit_jacobian_lens as fit_jacobian_lens
    from .lens.read.jacobian import jacobian_vector as jacobian_vector
    from .lens.read.jacobian import swap as swap
    from .lens.read.logits import attribute_logits as attribute_logits
    from .lens.read.logits import logit_lens as logit_lens
    from .lens.vectors import Contrast as Contrast
    from .lens.vectors import combine as combine
    from .lens.vectors import contrast as contrast
    from .lens.vectors import from_array as from_array
    from .lens.vectors import from_token as from_token
    from .lens.vectors import mean_difference as mean_difference
    from .lens.vectors import random_unit as random_unit
    from .lens.vectors import residual_norm as residual_norm
    from .lens.vectors import without as without
    from .records.attribution_graph import LogitTarget as LogitTarget
    from .records.attribution_graph import graph_scores as graph_scores
    from .records.attribution_graph import node_influence as node_influence
    from .records.attribution_graph import prune_graph as prune_graph
    from .records.errors import LensError as LensError
    from .records.errors import LensWarning as LensWarning
    from .records.errors import NotFinite as NotFinite
    from .records.gates import Gate as Gate
    from .records.gates import Monitor as Monitor
    from .records.graph_file import read_graph as read_graph
    from .records.graph_file import write_graph as write_graph
    from .records.interventions import ALL as ALL
    from .records.interventions import Ablate as Ablate
    from .records.interventions import AblateHeads as AblateHeads
    from .records.interventions import Add as Add
    from .records.interventions import Arm as Arm
    from .records.interventions import CapProjection as CapProjection
    from .records.interventions import ClampFeature as ClampFeature
    from .records.interventions import NormMatch as NormMatch
    from .records.interventions import Positions as Positions
    from .records.interventions import ProjectOut as ProjectOut
    from .records.interventions import SetProjection as SetProjection
    from .records.interventions import Swap as Swap
    from .records.jacobian_lens import JacobianLens as JacobianLens
    from .records.jacobian_lens import read_jacobian_lens as read_jacobian_lens
    from .records.jacobian_lens import write_jacobian_lens as write_jacobian_lens
    from .records.patch_grid import PromptPair as PromptPair
    from .records.patch_grid import Receiver as Receiver
    from .records.patch_grid import Sender as Sender
    from .records.patch_grid import agreement as agreement
    from .records.pattern_record import EditPattern as EditPattern
    from .records.probe import Probe as Probe
    from .records.probe import ProbeReport as ProbeReport
    from .records.probe import load_probe as load_probe
    from .records.probe import save_probe as save_probe
    from .records.prompt_set import PromptItem as PromptItem
    from .records.prompt_set import PromptSet as PromptSet
    from .records.prompt_set import SetCell as SetCell
    from .records.prompt_set import read_prompt_set as read_prompt_set
    from .records.run import Request as Request
    from .records.run import Sampling as Sampling
    from .records.steering_vector import SteeringVector as SteeringVector
    from .records.training import TrainConfig as TrainConfig
    from .records.vector_formats import load_vectors as load_vectors
    from .records.vector_formats import save_vectors as save_vectors
    from .records.vector_sets import load_vector_set as load_vector_set
    from .records.vector_sets import set_interventions as set_interventions
    from .sae.base import Reconstruction as Reconstruction
    from .sae.fit import splice as splice
    from .sae.fit import spliced as spliced
    from .sae.index.index_reader import FeatureIndex as FeatureIndex
    from .sae.index.index_settings import IndexSettings as IndexSettings
    from .sae.index.questions import co_active as co_active
    from .sae.index.questions import contrast_features as contrast_features
    from .sae.index.questions import decoder_neighbours as decoder_neighbours
    from .sae.index.questions import promoting as promoting
    from .sae.index.questions import rank_features as rank_features
    from .sae.index.questions import text_features as text_features
    from .sae.load_sae import SAE as SAE
    from .sae.load_sae import GatedSAE as GatedSAE
    from .sae.load_sae import GroupMaxSAE as GroupMaxSAE
    from .sae.load_sae import JumpReLUSAE as JumpReLUSAE
    from .sae.load_sae import StandardSAE as StandardSAE
    from .sae.load_sae import TopKSAE as TopKSAE
    from .sae.load_sae import load_sae as load_sae
    from .sae.load_sae import sae_info as sae_info
    from .sae.transcoder_sets import load_transcoders as load_transcoders
    from .tasks.bake import Baked as Baked
    from .tasks.bake import bake as bake
    from .tasks.index import index_text as index_text
    from .tasks.index import merge_index as merge_index
    from .tasks.prompt_sets import SetComparison as SetComparison
    from .tasks.prompt_sets import compare_prompts as compare_prompts
    from .tasks.prompt_sets import sweep as sweep
    from .tasks.train import check_sae as check_sae
    from .tasks.train import train_sae as train_sae
else:
    __all__, __getattr__, __dir__ = lazy(
        __name__,
        {
            ".lens.model": "LensModel",
            ".lens.causes.gradients": "gradients integrated_gradients",
            ".lens.causes.metrics": "Metric log_probability logit_difference",
            ".lens.causes.patching": "patch",
            ".lens.causes.direct_paths": "patch_edges path_patch",
            ".lens.causes.tracing": "causal_trace",
            ".lens.decode.batch": "BatchGeneration",
            ".lens.decode.compare": "Comparison Generation",
            ".lens.graphs.build_graph": "Attribution attribute attribution_graph",
            ".lens.graphs.edge_checks": "check_nodes node_vector",
            ".lens.hooks.capture_result": "CaptureResult",
            ".lens.hooks.steering": "Steering",
            ".lens.vectors": (
                "Contrast combine contrast from_array from_token mean_difference random_unit residual_norm without"
            ),
            ".lens.measure.dose": "FeatureProbe behaviour dose_response",
            ".lens.measure.effects": (
                "LOSS_TEXTS controlled controls degeneration delta_loss delta_losses divergence perplexity read_back"
            ),
            ".lens.measure.search": "find_scale",
            ".lens.probes.probe_texts": "evaluate_probe sparse_probe train_probes",
            ".lens.read.attention": "attention_patterns head_outputs",
            ".lens.read.jacobian": "fit_jacobian_lens jacobian_vector swap",
            ".lens.read.logits": "attribute_logits logit_lens",
            ".records.attribution_graph": "LogitTarget graph_scores node_influence prune_graph",
            ".records.graph_file": "read_graph write_graph",
            ".records.errors": "LensError LensWarning NotFinite",
            ".records.gates": "Gate Monitor",
            ".records.interventions": (
                "ALL Ablate AblateHeads Add Arm CapProjection ClampFeature NormMatch Positions ProjectOut "
                "SetProjection Swap"
            ),
            ".records.pattern_record": "EditPattern",
            ".records.jacobian_lens": "JacobianLens read_jacobian_lens write_jacobian_lens",
            ".records.patch_grid": "PromptPair Receiver Sender agreement",
            ".records.probe": "Probe ProbeReport load_probe save_probe",
            ".records.prompt_set": "PromptItem PromptSet SetCell read_prompt_set",
            ".records.run": "Request Sampling",
            ".records.training": "TrainConfig",
            ".records.vector_sets": "load_vector_set set_interventions",
            ".records.vector_formats": "load_vectors save_vectors",
            ".records.steering_vector": "SteeringVector",
            ".sae.base": "Reconstruction",
            ".sae.index.questions": (
                "co_active contrast_features decoder_neighbours promoting rank_features text_features"
            ),
            ".sae.index.index_reader": "FeatureIndex",
            ".sae.index.index_settings": "IndexSettings",
            ".sae.load_sae": "SAE GatedSAE GroupMaxSAE JumpReLUSAE StandardSAE TopKSAE load_sae sae_info",
            ".sae.fit": "splice spliced",
            ".sae.transcoder_sets": "load_transcoders",
            ".tasks.bake": "Baked bake",
            ".tasks.index": "index_text merge_index",
            ".tasks.prompt_sets": "SetComparison compare_prompts sweep",
            ".tasks.train": "check_sae train_sae",
        },
    )
    __all__.append("__version__")


blas.watch()
