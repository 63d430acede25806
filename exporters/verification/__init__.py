"""Verify that an exported file computes what its checkpoint computes, segment by segment and end to end."""
