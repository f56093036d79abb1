"""Numerics that layers are made of: whitening, rotations, reductions of maps."""
