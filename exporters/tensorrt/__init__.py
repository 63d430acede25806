"""TensorRT: lint an exported file, build an engine from it, and report what the engine computes in int8.

Two products share one Python interface: ``tensorrt`` (full TensorRT, 10.13 and above, which needs a GPU) and
``tensorrt_rtx`` (TensorRT-RTX, which also builds engines without a GPU). Neither is needed to import this package.
"""
