"""Train unrolled networks whose layers are constrained to descend, and measure what that buys."""

__version__ = "0.1.0"
