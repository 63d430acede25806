"""Refinements that bring int8 closer to float: smoothing, shifts, weight rounding, bias correction, clipping."""
