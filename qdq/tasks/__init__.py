"""Task metrics of whatever can be run: float and quantized checkpoints, exported files, any runner."""

__all__: list[str] = []
