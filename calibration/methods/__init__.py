"""Methods choose the range of a slot from its statistics; adjustments change ranges after calibration."""
