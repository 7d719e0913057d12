"""The self-test: proofs against counterexamples, enumeration and rational arithmetic, on the user's own machine."""
