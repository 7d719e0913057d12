"""The command line: a thin face of the package. Nothing here imports torch before a command runs."""
