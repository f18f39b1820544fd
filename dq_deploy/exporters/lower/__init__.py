"""Quantizers and layers as ONNX nodes, one file a kind.

A kind is a class of module. Functions that are registered for it (a subclass has its base's) say what its nodes are:

- of a quantizer: ``scale`` and, unless it is symmetric, ``zero_point``, which give values of the graph. Where these come from is their own
  matter: the row of a table (``table``), a constant (``probabilities``), or nodes that compute it from the activation ``at.x``.
- of a layer: its product in the way that a target multiplies, ``qdq_product`` (``qdq``) or ``integer_product`` (``onnxruntime``). It
  reads ``at.operands`` and knows no quantizer. A layer that is not a kind of convolution, linear layer or product of two activations also
  needs a ``skeleton.placeholder``, which stands for it while torch exports the graph.

To add one: a file here with these functions, each under ``@scale.register`` and so on, and its name in the first import below. From outside
of the package ``scale.register(Kind)(function)`` does the same.
"""

from __future__ import annotations

from . import conv, fp4, linear, matmul, probabilities, table, token, weight_only_conv, weight_only_linear  # noqa: F401  # which registers them
from .kinds import Operand, Place, QuantizerPlace, integer_product, qdq_product, scale, zero_point
from .walk import Sites, lower

__all__ = ["Operand", "Place", "QuantizerPlace", "Sites", "integer_product", "lower", "qdq_product", "scale", "zero_point"]
