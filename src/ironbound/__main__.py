"""`python -m ironbound`, for `torchrun -m ironbound train …`."""

from ironbound.cli.app import main

main()
