"""Find out without TensorRT whether it can read an ONNX file, and whether it runs in int8 where the quantizers are."""
