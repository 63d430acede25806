"""Find out what each quantized slot of a checkpoint costs, and what to keep in float for a wanted accuracy."""
