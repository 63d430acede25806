"""What each quantized slot costs the outputs of a model, and which slots to leave in float."""
