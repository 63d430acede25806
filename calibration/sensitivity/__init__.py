"""Measure how much each quantized slot changes the outputs of a model, and choose the slots to leave in float."""
