"""What there is to choose from about quantization, by name."""

from __future__ import annotations

from enum import StrEnum


class Dilation(StrEnum):
    """How weight dilation chooses s (DilateQuant §4.1).

    ASYMMETRIC is the paper's rule and SYMMETRIC its form for symmetric weights; LAYERWISE takes for each layer the s within that bound with
    the least output error. SMOOTHQUANT is a rival's rule (arXiv 2211.10438, eq. 4), which does not stay within the weights' range. AUTO
    takes the one of these and NONE that serves the network best, SMOOTHQUANT only with a clear lead.
    """

    NONE = "none"
    SYMMETRIC = "symmetric"
    ASYMMETRIC = "asymmetric"
    LAYERWISE = "layerwise"
    AUTO = "auto"
    SMOOTHQUANT = "smoothquant"


class Rotation(StrEnum):
    """What linear layers on tokens read is multiplied by an orthogonal matrix first, 64, 128 or 256 channels together (graph/rotation.py).

    A number is the largest block; a layer whose channels it does not divide has the next that does. AUTO rotates where a layer's outputs
    come nearer by a decibel, measured on calibration samples; or by a quarter of one, where the layer before can do it for nothing.
    """

    NONE = "none"
    AUTO = "auto"
    BLOCKS_64 = "64"
    BLOCKS_128 = "128"
    BLOCKS_256 = "256"


class InitialRange(StrEnum):
    """Range that a scale starts from.

    AUTO is LEAST_ERROR: of all calibration samples' values, the range with the least squared error, where clipping counts more than
    rounding. MSE counts both alike, MINMAX clips nothing that was seen, PERCENTILE both ends.
    """

    AUTO = "auto"
    LEAST_ERROR = "least-error"
    MINMAX = "minmax"
    MSE = "mse"
    PERCENTILE = "percentile"


class Rounding(StrEnum):
    """How weights become codes.

    NEAREST rounds each alone. GPTQ rounds one input of a layer after the other, by what it does to the layer's output on the calibration
    samples (rounding/). AUTO is GPTQ where nothing is trained or activations have ``GPTQ_ACTIVATION_BITS``: by
    measurement (docs/decisions/rounding.md).
    """

    AUTO = "auto"
    NEAREST = "nearest"
    GPTQ = "gptq"


class SkipHalves(StrEnum):
    """Inputs concatenated from two ranges: one quantizer over both, or one for each half and two products that are summed."""

    JOINT = "joint"
    SPLIT = "split"


class Distillation(StrEnum):
    """What is trained at once: a block against the float chain's block, or the whole network against the float network's output."""

    BLOCK = "block"
    END_TO_END = "end-to-end"


class Sampler(StrEnum):
    """Scheduler of the calibration trajectories: DDIM where it can stand in (choice.py), or the pipeline's own scheduler."""

    DDIM = "ddim"
    PIPELINE = "pipeline"
