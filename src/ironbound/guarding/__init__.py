"""What the run-time guard is made of: its dual bound as an ONNX program, and how the program is written."""
