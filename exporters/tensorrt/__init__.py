"""TensorRT: check an exported file, build an engine from it, and see what the engine really computes in int8.

Two products share one Python interface: ``tensorrt`` (full TensorRT, 10.13 and above; needs a GPU) and
``tensorrt_rtx`` (TensorRT-RTX, which builds engines on a machine without one). Neither is needed to import this.
"""
