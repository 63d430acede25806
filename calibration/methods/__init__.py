"""From the statistics of a slot to its range: the methods, and changes to ranges after calibration."""
