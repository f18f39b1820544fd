"""What the manifest's ``details`` of each kind of artefact hold: parsed once, when the artefact is opened, and typed from there on.

Only those who write a manifest handle dictionaries.
"""

from .findings import (
    BlockLoss,
    DilatedInput,
    FormatChoice,
    FreeDimension,
    RefitRecord,
    RotatedInput,
    RoundedLayer,
    ScaleChoice,
    WidthRecord,
    snr_span,
)
from .kinds import (
    BundleDetails,
    CheckpointDetails,
    Details,
    EngineDetails,
    EngineFile,
    GraphDetails,
    MemberEntry,
    PipelineFolderDetails,
    RepositoryDetails,
    RunnableDetails,
    ScheduleDetails,
    Target,
    parse_details,
    switches_problem,
)
from .layers import BitsOfWork, FloatLayer, LoweredLayer, Product, QuantizedLayer, QuantizerSite
from .network import Adapter, GraphInput, GraphOutput, Origin, Place

__all__ = [
    "Adapter",
    "BitsOfWork",
    "BlockLoss",
    "BundleDetails",
    "CheckpointDetails",
    "Details",
    "DilatedInput",
    "EngineDetails",
    "EngineFile",
    "FloatLayer",
    "FormatChoice",
    "FreeDimension",
    "GraphDetails",
    "GraphInput",
    "GraphOutput",
    "LoweredLayer",
    "MemberEntry",
    "Origin",
    "PipelineFolderDetails",
    "Place",
    "Product",
    "QuantizedLayer",
    "QuantizerSite",
    "RefitRecord",
    "RepositoryDetails",
    "RotatedInput",
    "RoundedLayer",
    "RunnableDetails",
    "ScaleChoice",
    "ScheduleDetails",
    "Target",
    "WidthRecord",
    "parse_details",
    "snr_span",
    "switches_problem",
]
