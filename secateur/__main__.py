"""`python -m secateur` is the command line."""

from secateur.cli.app import main

main()
