"""Text and datasets in, batches of token ids out; shared by calibration, evaluation, verification and training."""
