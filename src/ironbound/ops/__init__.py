"""Operators: one rule each, in one place. Facts are declared once; the methods in `bounds` derive what they need."""
