"""Whether TensorRT will take an ONNX file, and run it in int8 where its quantizers say so; asked without TensorRT."""
