"""What calibration collects from the tensors of a model, batch by batch and in constant memory."""
