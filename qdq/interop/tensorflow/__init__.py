"""Checkpoints of TensorFlow (Google's BERT, ALBERT and REALM) to models of ours.

Files are read by TensorFlow itself (the extra ``tensorflow``); what its names mean is in ``names``.
"""

from qdq.interop.tensorflow.convert import convert, from_variables

__all__ = ["convert", "from_variables"]
