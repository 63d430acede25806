"""Name nodes and tensors after the modules they come from."""

from __future__ import annotations

import ast
from collections import Counter

import onnx_ir as ir

__all__ = ["NameAfterModulesPass"]

_SCOPES = "pkg.torch.onnx.name_scopes"
_NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"  # torch writes this for the shapes of the inputs


class NameAfterModulesPass(ir.passes.InPlacePass):
    """Name every node and its outputs after the module: the dotted name, a slash and the operator.

    Case 1: torch's exporter stored the path of the module in the metadata of the node: it is the name.
    Case 2: It did not: the name is the operator with a number.
    Case 3: Initializers lose the prefix. The scale of a shared quantizer is named after the first module that uses it.
    Graph inputs and outputs keep their names, which are the signature.

        encoder.layers.0.attention.query/MatMul        the second one: encoder.layers.0.attention.query/MatMul_1

    Args:
        prefix: Path of the model inside the traced module. It is left out of the names.
    """

    def __init__(self, prefix: str = "") -> None:
        super().__init__()
        self._prefix = prefix

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rename nodes, values and initializers."""
        taken: Counter[str] = Counter()
        modified = False
        for node in model.graph:
            stem = "/".join(part for part in (self._module(node), node.op_type) if part)
            name = stem if not taken[stem] else f"{stem}_{taken[stem]}"
            taken[stem] += 1
            modified |= node.name != name
            node.name = name
            for index, output in enumerate(node.outputs):
                if not output.is_graph_output():
                    modified |= output.name != f"{name}_output_{index}"
                    output.name = f"{name}_output_{index}"
        modified |= self._name_initializers(model.graph)
        return ir.passes.PassResult(model, modified)

    def _name_initializers(self, graph: ir.Graph) -> bool:  # case 3
        names = {value: name.removeprefix(f"{self._prefix}.") for name, value in graph.initializers.items()}
        named = set()
        for node in graph:
            if node.op_type == "QuantizeLinear" and node.inputs[1] in names and node.inputs[1] not in named:
                named.add(node.inputs[1])
                names[node.inputs[1]] = f"{self._module(node)}.scale"
        changed = [value for value, name in names.items() if value.name != name]
        for value in changed:
            value.name = names[value]
        return bool(changed)

    def _module(self, node: ir.Node) -> str:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        path = scopes[-2] if len(scopes) > 1 else ""  # the last scope is the operation itself
        if path in (self._prefix, _NO_MODULE):
            return ""
        return str(path).removeprefix(f"{self._prefix}.")
