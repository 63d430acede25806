"""Training: float heads, quantized checkpoints with fake quantization (QAT), distillation; steps by accelerate."""

__all__: list[str] = []
