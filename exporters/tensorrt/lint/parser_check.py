"""Check I3: let the parser of the installed TensorRT read the file."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from exporters.tensorrt.backend import find_backend, messages
from exporters.tensorrt.lint.quantizer_checks import finding

if TYPE_CHECKING:
    from pathlib import Path

    from exporters.tensorrt.lint.rules import Finding
    from exporters.tensorrt.protocols import Parser

__all__ = ["parser_findings"]


def parser_findings(path: Path, *, backend: str = "auto") -> list[Finding]:
    """Return the errors of the parser, none if it reads the file.

    Args:
        path: The ONNX file.
        backend: See :func:`exporters.tensorrt.backend.find_backend`.

    Raises:
        MissingPackageError: If no TensorRT is installed.
    """
    installed = find_backend(backend)
    trt = installed.trt
    logger, received = messages(installed)
    received.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        builder = trt.Builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser: Parser = trt.OnnxParser(network, logger)
        if parser.parse_from_file(str(path)):
            return []
    problems = [parser.get_error(index) for index in range(parser.num_errors)]
    told = {(problem.node_name() or "the file", " ".join(problem.desc().split())) for problem in problems}
    return [
        finding("I3", node, f"{installed.name} {installed.version}: {words}", "error") for node, words in sorted(told)
    ] or [finding("I3", "the file", f"{installed.name} {installed.version} cannot read it", "error")]
