"""The whole way with one real model: calibrate, export for every target, verify, compare and time."""
