"""OpenVINO: integer execution of the ``qdq`` target's graph on a CPU, from a bundle or from an engine built for OpenVINO."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...artifacts import Artifact, is_kind
from ...artifacts.details import BundleDetails
from ...artifacts.reading import check_structure, without_links
from ...errors import ArtifactError, EnvironmentProblem, UsageError, raise_if_out_of_memory
from ...formats.fp4 import FP4_OPERATOR
from ..loading.engine_files import check_backend_is, check_version, open_graph, options_of
from ..running.finite import Nonfinite, checked
from ..running.lookup_tables import entries_in_openvino
from ..running.runner import Array, InputSpec, PartsRunner, graph_file
from . import int8_kernels
from .descriptor import OPENVINO
from .graph import FUSIONS, PRODUCTS, product_precision
from .ladder import REWRITTEN, Shapes, Way, compile_somehow
from .layouts import channels_last, only_holds
from .rewrites import rewrite
from .rewrites.constants import quantized_constants
from .shapes import ShapedModels, shapes_for

Precision = Literal["f32", "bf16", "f16"]
_DTYPES = {"f32": np.float32, "f16": np.float16, "f64": np.float64, "i64": np.int64, "i32": np.int32, "boolean": np.bool_}
_NAMES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
_LONG_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

_EMULATED = (
    "OpenVINO only emulates FP8 on a CPU: slower than float, rounded by way of float16 (a few codes are a step off), and NaN becomes -448. "
    "ONNX Runtime computes what the graph says (runtime onnxruntime)"
)
_NO_FP4 = "ONNX Runtime computes what the graph says (runtime onnxruntime); for a CPU's speed quantize with --preset w8a8"
_ONE_OPERATOR = '<ir_version: 10, opset_import: ["": 21]> one (float[1] x) => (float[1] y) { y = Relu(x) }'


class OpenVinoRunner(PartsRunner):
    """A bundle or an engine for OpenVINO (folder or opened artefact), an ONNX file or OpenVINO's IR, compiled for the CPU.

    ``precision`` is that of what is not INT8 (``INFERENCE_PRECISION_HINT``); None leaves the choice to OpenVINO, which takes bf16 where
    the CPU has it. ``integer`` says whether quantized layers run on INT8 kernels; None is as the engine was built, or else takes them
    where they serve on this CPU (see ``int8_serves``). In float they are slow and exact. ``nonfinite`` is what happens to samples with NaN
    or infinity (finite.py).

    Each of the first few shapes that it is run at is compiled when it comes, which takes seconds (``ShapedModels``). A graph that OpenVINO
    refuses is tried in other ways (ladder.py), each said once, as a warning, and the one taken in ``details["compiled"]``; where
    it refuses all, ``otherwise`` makes the runner that is used instead. May be run by several threads at once.

    Raises EnvironmentProblem (OpenVINO is missing or older than the engine, or the CPU lacks that precision) and ArtifactError (a graph
    that it does not load).
    """

    def __init__(
        self,
        source: str | Path | Artifact,
        *,
        precision: Precision | None = "f32",
        threads: int | None = None,
        integer: bool | None = None,
        nonfinite: Nonfinite = "refuse",
        otherwise: Callable[[], PartsRunner] | None = None,
    ) -> None:
        self.nonfinite = checked(nonfinite)
        openvino = OPENVINO.load()
        if threads is not None and threads < 1:
            raise UsageError(f"threads is {threads}, and at least 1 is needed")
        self._file, as_built, without_vnni = _model_file(source)
        file, integer = self._file, as_built if integer is None else integer
        integer = int8_kernels.int8_serves(without_vnni) if integer is None else integer
        config = _configuration(openvino, precision, threads, integer)
        with _plain_file(source, file) as plain:
            model = read_graph(openvino, plain)
            entries = entries_in_openvino(model)
            if _has_float8(model):
                warnings.warn(f"{file}: {_EMULATED}", RuntimeWarning, stacklevel=2)
            size = sum(path.stat().st_size for path in plain.parent.glob(f"{plain.stem}*"))

        def compile_for(shapes: Shapes | None) -> Any:
            def compile_as(way: Way) -> Any:
                chosen = config if way.integer else _configuration(openvino, precision, threads, integer=False)
                with int8_kernels.kept_signal_stack():
                    return _compile(openvino, model, chosen, shapes, way)

            try:
                compiled, way = compile_somehow(
                    compile_as, integer=integer, openable=bool(shapes), refused=lambda way, why: self._tell(f"{way.name}: {why}")
                )
            except RuntimeError as error:
                raise self._failure(error) from error
            if way is not REWRITTEN:
                self.details.setdefault("compiled", []).append({"shapes": {k: list(v) for k, v in (shapes or {}).items()}, "way": way.name})
            return compiled

        self._otherwise, self._told = otherwise, set[str]()
        self._instead: PartsRunner | None = None
        self._models = ShapedModels(compile_for, dynamic=model.is_dynamic(), most=shapes_for(size))
        used, used_threads = _in_use(openvino, config)
        if precision and used != precision:
            raise EnvironmentProblem(
                f"OpenVINO computes in {_NAMES.get(used, used)} on this CPU, not in {_NAMES.get(precision, precision)} as asked"
            )
        self.name = OPENVINO.name
        self.specs = tuple(_spec(port, file, entries.get(port.any_name)) for port in model.inputs)
        self.details: dict[str, Any] = {
            "engine": self.name,
            "version": openvino.__version__,
            "provider": "CPU",
            "precision": used,
            "threads": used_threads,
            "integer": integer,
            "int8_saturates": int8_kernels.int8_saturates(),
        }

    def products(self) -> list[tuple[str, str]]:
        """(operation, precision) of every convolution and matrix product of the compiled model, such as ("Convolution", "int8").

        "int8" means that a kernel multiplies integers, "int4" that a float kernel unpacks INT4 weights; everything else is a float's name.
        """
        found: list[tuple[str, str]] = []
        for node in self._models.any().get_runtime_model().get_ops():
            info = node.get_rt_info()
            kind, primitive, stated, layers = (
                str(info[key].value) for key in ("layerType", "primitiveType", "runtimePrecision", "originalLayersNames")
            )
            if kind in PRODUCTS and not only_holds(node.get_friendly_name()):
                found.append((kind, _stated_precision(primitive, stated)))
            elif kind in FUSIONS:  # attention as one kernel, which has its products' names: whether it is taken depends on the machine
                inside = (layer.rpartition("/")[2] for layer in layers.split(","))
                found += [(layer, _stated_precision(primitive, stated)) for layer in inside if layer in PRODUCTS]
        return found

    def _infer(self, feeds: dict[str, Array]) -> Array:
        return self.infer_all(feeds)[0]

    def infer_all(self, feeds: Mapping[str, Array]) -> list[Array]:
        """See ``PartsRunner``."""
        if self._instead is not None:
            return self._instead.infer_all(feeds)
        try:
            return self._models.infer(feeds)
        except RuntimeError as error:
            raise self._failure(error) from error
        except ArtifactError as error:  # it compiles in no way
            if self._otherwise is None:
                raise
            self._instead = self._otherwise()
            self._tell(f"{error}; {self._instead.name} runs it instead")
            self.name, self.details = self._instead.name, {**self._instead.details, "instead_of": OPENVINO.name}
            return self._instead.infer_all(feeds)

    def _tell(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            warnings.warn(f"OpenVINO refuses {self._file} {what}", RuntimeWarning, stacklevel=2)

    def _failure(self, error: RuntimeError) -> ArtifactError:
        raise_if_out_of_memory(error)
        return ArtifactError(f"OpenVINO cannot run {self._file}: {_cause(error)}")


def read_graph(openvino: Any, file: Path) -> Any:
    """An ONNX file or OpenVINO's IR as OpenVINO's model. Raises ArtifactError when it does not read it."""
    try:
        model = openvino.Core().read_model(str(file))
        quantized_constants(openvino, model)
        return model
    except RuntimeError as error:
        if FP4_OPERATOR in str(error):
            raise ArtifactError(f"{file} multiplies FP4 codes, which OpenVINO has no numbers for", _NO_FP4) from error
        raise refusal(openvino, file, error) from error


def _has_float8(model: Any) -> bool:
    return any(output.get_element_type().get_type_name().startswith("f8") for op in model.get_ops() for output in op.outputs())


def compile_for_cpu(openvino: Any, file: Path, *, integer: bool, shapes: Mapping[str, Sequence[int]]) -> Any:
    """Read an ONNX file or OpenVINO's IR and compile it as the runner does; ``shapes`` by input fix what is dynamic.

    Raises ArtifactError when OpenVINO does not load it.
    """
    try:
        model = read_graph(openvino, file)

        def compile_as(way: Way) -> Any:
            return _compile(openvino, model, _configuration(openvino, "f32", None, integer and way.integer), shapes, way)

        return compile_somehow(compile_as, integer=integer, openable=bool(shapes), refused=lambda *_: None)[0]
    except RuntimeError as error:
        raise refusal(openvino, file, error) from error


def _configuration(openvino: Any, precision: Precision | None, threads: int | None, integer: bool) -> dict[str, Any]:
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    config |= {"INFERENCE_PRECISION_HINT": precision} if precision else {}
    config |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
    return config | ({} if integer else int8_kernels.without_integer_kernels(openvino))


def _compile(openvino: Any, model: Any, config: Mapping[str, Any], shapes: Shapes | None, way: Way) -> Any:
    model = model.clone()  # which keeps the weights: they are not copied
    if shapes and way.fixed:
        model.reshape({name: list(shape) for name, shape in shapes.items()})
    if way.rewritten and not model.is_dynamic():
        rewrite(model)
    if not model.is_dynamic():
        model = channels_last(model)
    return openvino.Core().compile_model(model, "CPU", dict(config))


def _in_use(openvino: Any, config: Mapping[str, Any]) -> tuple[str, int]:
    """Precision and threads that OpenVINO takes for a configuration, of a model of one operator."""
    import onnx

    model = openvino.Core().read_model(onnx.parser.parse_model(_ONE_OPERATOR).SerializeToString())
    with int8_kernels.kept_signal_stack():
        compiled = openvino.Core().compile_model(model, "CPU", dict(config))
    return compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(), compiled.get_property("INFERENCE_NUM_THREADS")


def refusal(openvino: Any, file: Path, error: RuntimeError) -> ArtifactError:
    """The error for a graph that OpenVINO does not take, in its own words."""
    raise_if_out_of_memory(error)
    return ArtifactError(f"OpenVINO {openvino.__version__} cannot load {file}: {_cause(error)}")


_REFUSED = re.compile(r"^-- (\S+) with a message:\n(?:.*\n)*?(.+)\n\n", re.MULTILINE)
"""An operator, and the last line of what is said of it."""
_MOST_REFUSED = 5


def _cause(error: RuntimeError) -> str:
    """The end of OpenVINO's chain of messages, where it names the cause; of operators that it refuses, what it says of each.

    One of them may be refused for another that comes before it.
    """
    if refused := _REFUSED.findall(str(error)):
        return "; ".join(f"{operator}: {' '.join(message.split())}" for operator, message in refused[:_MOST_REFUSED])
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())[-400:]


def _model_file(source: str | Path | Artifact[Any]) -> tuple[Path, bool | None, bool]:
    """The file to compile: a bundle's graph, an engine's IR, or the file itself when the path names one.

    And an engine's ``integer``, and ``int8_without_vnni`` of an artefact.
    """
    if not isinstance(source, Artifact):
        if Path(source).is_file():
            return (Path(source) if Path(source).suffix == ".xml" else _valid(graph_file(source))), None, False
        source = open_graph(source)
    if is_kind(source, BundleDetails):
        return _valid(graph_file(source)), None, int8_kernels.int8_without_vnni(source)
    details = check_backend_is(source, OPENVINO.name)
    check_version(source, details, metadata.version(OPENVINO.distributions[0]))
    return source.file(details.engines[0].file), options_of(source.path, details).integer, details.int8_without_vnni


def _valid(file: Path) -> Path:
    """Raise ArtifactError for a graph that is not a valid model: OpenVINO takes one with a circle, or with a value that is made twice."""
    import onnx

    try:
        check_structure(file)
    except onnx.checker.ValidationError as error:
        raise ArtifactError(f"{file} is not a valid model: {' '.join(str(error).split())[:400]}") from None
    return file


@contextmanager
def _plain_file(source: str | Path | Artifact, file: Path) -> Iterator[Path]:
    """The file where it and its data are not links: in a hub's cache they are, and OpenVINO does not follow them to the data."""
    if not isinstance(source, Artifact) and Path(source).is_file():
        yield file
        return
    names = [path.name for path in file.parent.iterdir() if path.suffix != ".json"]
    with without_links(file.parent, names) as folder:
        yield folder / file.name


def _stated_precision(primitive: str, weights: str) -> str:
    """Precision of a product, "int4" where it unpacks such weights itself."""
    precision = product_precision(primitive)
    return "int4" if precision != "int8" and weights in ("i4", "u4") else _LONG_NAMES.get(precision, precision)


def _spec(port: Any, file: Path, entries: int | None) -> InputSpec:
    dtype = port.get_element_type().get_type_name()
    if dtype not in _DTYPES:
        raise ArtifactError(f"{file}: input '{port.any_name}' is a {dtype}, which no diffusion model takes")
    sizes = list(port.get_partial_shape())
    shape = tuple(None if size.is_dynamic else size.get_length() for size in sizes)
    bounded = all(size.get_max_length() > 0 for size in sizes)
    limits = tuple((size.get_min_length(), size.get_max_length()) for size in sizes) if bounded else ()
    return InputSpec(port.any_name, shape, np.dtype(_DTYPES[dtype]), limits, entries)
