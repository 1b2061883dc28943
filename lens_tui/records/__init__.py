"""Plain data and the disk: records, settings, paths, sanitising. No MLX, no Textual.

The names below are imported when they are first used: an error message needs no numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lens_tui.lazy import lazy

if TYPE_CHECKING:
    from .attribution_graph import AttributionGraph as AttributionGraph
    from .attribution_graph import EdgeCheck as EdgeCheck
    from .attribution_graph import GraphNode as GraphNode
    from .attribution_graph import GraphScores as GraphScores
    from .attribution_graph import GraphSums as GraphSums
    from .attribution_graph import Supernode as Supernode
    from .errors import LensError as LensError
    from .errors import LensWarning as LensWarning
    from .errors import NotFinite as NotFinite
    from .features import CoActive as CoActive
    from .features import ContrastedFeature as ContrastedFeature
    from .features import Promoter as Promoter
    from .gates import Gate as Gate
    from .gates import Monitor as Monitor
    from .info import ModelInfo as ModelInfo
    from .info import SAEInfo as SAEInfo
    from .interventions import ALL as ALL
    from .interventions import Ablate as Ablate
    from .interventions import AblateHeads as AblateHeads
    from .interventions import Add as Add
    from .interventions import Arm as Arm
    from .interventions import CapProjection as CapProjection
    from .interventions import ClampFeature as ClampFeature
    from .interventions import Intervention as Intervention
    from .interventions import NormMatch as NormMatch
    from .interventions import Positions as Positions
    from .interventions import ProjectOut as ProjectOut
    from .interventions import SetProjection as SetProjection
    from .interventions import Swap as Swap
    from .measures import AttentionPattern as AttentionPattern
    from .measures import Controlled as Controlled
    from .measures import Curve as Curve
    from .measures import Degeneration as Degeneration
    from .measures import DeltaLoss as DeltaLoss
    from .measures import Divergence as Divergence
    from .measures import DosePoint as DosePoint
    from .measures import DoseResponse as DoseResponse
    from .measures import LogitAttribution as LogitAttribution
    from .measures import LogitLens as LogitLens
    from .measures import Part as Part
    from .measures import ReadBack as ReadBack
    from .measures import ScaleSearch as ScaleSearch
    from .pattern_record import EditPattern as EditPattern
    from .run import ArmEnd as ArmEnd
    from .run import BatchRow as BatchRow
    from .run import Candidate as Candidate
    from .run import Dose as Dose
    from .run import Echo as Echo
    from .run import Request as Request
    from .run import Sampling as Sampling
    from .run import Steered as Steered
    from .run import Token as Token
    from .steering_vector import FloatArray as FloatArray
    from .steering_vector import Origin as Origin
    from .steering_vector import SteeringVector as SteeringVector
    from .steering_vector import TokenWeight as TokenWeight
    from .training import Evaluation as Evaluation
    from .training import FitReport as FitReport
    from .training import SiteFit as SiteFit
    from .training import TrainConfig as TrainConfig
    from .training import TrainProgress as TrainProgress
    from .training import TrainReport as TrainReport
else:
    __all__, __getattr__, __dir__ = lazy(
        __name__,
        {
            ".attribution_graph": "AttributionGraph EdgeCheck GraphNode GraphScores GraphSums Supernode",
            ".errors": "LensError LensWarning NotFinite",
            ".features": "CoActive ContrastedFeature Promoter",
            ".gates": "Gate Monitor",
            ".info": "ModelInfo SAEInfo",
            ".interventions": (
                "ALL Ablate AblateHeads Add Arm CapProjection ClampFeature Intervention NormMatch Positions "
                "ProjectOut SetProjection Swap"
            ),
            ".pattern_record": "EditPattern",
            ".measures": (
                "AttentionPattern Controlled Curve Degeneration DeltaLoss Divergence DosePoint DoseResponse "
                "LogitAttribution LogitLens Part ReadBack ScaleSearch"
            ),
            ".run": "ArmEnd BatchRow Candidate Dose Echo Request Sampling Steered Token",
            ".training": "Evaluation FitReport SiteFit TrainConfig TrainProgress TrainReport",
            ".steering_vector": "FloatArray Origin SteeringVector TokenWeight",
        },
    )
