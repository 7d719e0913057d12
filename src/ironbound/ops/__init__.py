"""Operators: one rule each, in one place. Facts are declared once; the methods in `bounding` derive what they need."""
