"""Verification that an exported file computes what the checkpoint computes, segment by segment and end to end."""
