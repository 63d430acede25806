"""What brings int8 closer to float beyond ranges: smoothing, shifts, rounding of weights, correction of biases."""
