"""The names that other programs give to the inputs and outputs of their ONNX files."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["input_named", "output_names_of"]

_LOG = logging.getLogger(__name__)

_INPUTS: Mapping[str, tuple[str, ...]] = {
    "input_ids": ("input_word_ids", "input_id", "ids", "input_tokens", "token_ids", "tokens"),
    "attention_mask": ("input_mask", "mask", "attn_mask", "padding_mask"),
    "token_type_ids": ("segment_ids", "input_type_ids", "token_type_id", "segment_id", "type_ids"),
    "position_ids": ("positions", "position_id", "input_positions"),
}
_OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "last_hidden_state": ("token_embeddings", "hidden_states", "last_hidden_states", "sequence_output"),
    "sentence_embedding": ("sentence_embeddings", "text_embeds"),
    "logits": ("output_logits", "class_logits"),
    "start_logits": ("unstack:0", "start_scores", "start"),
    "end_logits": ("unstack:1", "end_scores", "end"),
}
# Names that exporters make up. Any other name may mean something else, such as probabilities or a pooled vector.
_SAYS_NOTHING = re.compile(r"(outputs?|result|Identity|StatefulPartitionedCall|model_output)?([._:-]?\d+)*")
_RANKS = {"sentence_embedding": 2, "last_hidden_state": 3}


def input_named(name: str) -> str | None:
    """Return our name of an input, None if it is none that a text fills.

    TensorFlow puts ``:0`` behind names and ``serving_default_`` in front of them.
    """
    plain = re.sub(r"^serving_default_|:\d+$", "", name)
    return next((ours for ours, others in _INPUTS.items() if plain == ours or plain in others), None)


def output_names_of(
    ranks: Mapping[str, int | None], wanted: Sequence[Sequence[str]], of_tokens: Sequence[str], file: str
) -> dict[str, str]:
    """Return the output in the file by our name, for all outputs: those of unknown names keep theirs.

    If none of the wanted sets is there, the one output of the right rank whose name says nothing, such as ``output_0``,
    is taken for a set of a single name, with a warning.

    Args:
        ranks: Number of axes of each output in the file, None or 0 if it is unknown.
        wanted: The outputs that are needed: any of several sets of our names.
        of_tokens: Those of our outputs that have a value, or a vector, for each token.
        file: Name of the file, for the warning.
    """
    found = {}
    for name in ranks:
        plain = re.sub(r"^StatefulPartitionedCall:|:0$", "", name)
        ours = next((ours for ours, others in _OUTPUTS.items() if name in others or plain in (ours, *others)), name)
        found[name if (ours in ranks and ours != name) or ours in found else ours] = name
    if any(set(names) <= set(found) for names in wanted):
        return found
    for names in wanted:
        if len(names) > 1:
            continue
        rank = _RANKS.get(names[0], 3 if names[0] in of_tokens else 2)
        fitting = [name for name in found.values() if ranks[name] == rank and _SAYS_NOTHING.fullmatch(name)]
        if len(fitting) == 1:
            _LOG.warning("%s: its output %s is read as %s, because of its %d axes", file, fitting[0], names[0], rank)
            return {names[0]: fitting[0], **{ours: name for ours, name in found.items() if name != fitting[0]}}
    return found
