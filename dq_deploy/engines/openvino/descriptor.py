"""OpenVINO in the table of engines, and the setting of it that takes INT8 kernels even where they saturate."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..descriptors.descriptor import Builder, EngineDescriptor, Products, Triton
from ..descriptors.version_rules import not_older
from ..devices.machine import INTEGER_INSTRUCTIONS

if TYPE_CHECKING:
    from ...artifacts import Artifact
    from ...artifacts.details import BundleDetails


def _faster(bundle: Artifact[BundleDetails]) -> bool:
    """Graphs of target ``qdq`` whose products are integers, by half of the multiply-accumulates or more (docs/engines.md has the
    measurements): with INT8 kernels where these are exact on this CPU, else in float.
    """  # noqa: D205
    from ...artifacts.layer_bits import fraction_of_work, integer_activations

    details = bundle.details
    products = [*details.layers, *details.float_layers]
    return details.target in OPENVINO.targets and fraction_of_work(products, integer_activations) >= 1 / 2


OPENVINO = EngineDescriptor(
    name="openvino",
    title="OpenVINO",
    modules=("openvino",),
    distributions=("openvino",),
    runner="dq_deploy.engines.openvino.runner:OpenVinoRunner",
    runs=("bundle", "engine"),
    options=("precision", "integer", "threads"),
    kept=("precision", "integer"),
    falls_back=True,
    parts=True,
    # Scales that are computed at run time, the other target's, make it multiply in float.
    targets=("qdq",),
    prefers=_faster,
    # Documented for CPUs with VNNI or its like. FP8 it only emulates, around products in float: it runs bundles so (runner.py says it),
    # and an engine would have no point.
    products=(Products("int8", documented=True, instructions=INTEGER_INSTRUCTIONS, executed=True),),
    weight_formats=("int8", "int4"),
    weights_seen=("int4",),
    extra="openvino",
    purpose="the fastest CPU engine found: build-engine, sample and bench",
    probe="import openvino\nfound = {'devices': openvino.Core().available_devices}",
    builder=Builder(
        child="dq_deploy.engines.openvino.child",
        target="qdq",
        file="model.xml",
        statement="chosen by OpenVINO for this machine's CPU at the usual shapes; another CPU chooses again when it loads the engine",
        reads=not_older,
        device="CPU",
        options=("int8_kernels",),
        details="dq_deploy.engines.openvino.int8_kernels:manifest_details",
    ),
    triton=Triton("openvino", "model.xml", device="cpu"),
)
OPENVINO_INT8 = replace(OPENVINO, name="openvino-int8", variant_of="openvino", settings={"integer": True}, prefers=None)
