"""Exact search: branch and bound on ReLU signs and on the input, linear and mixed-integer programs."""
