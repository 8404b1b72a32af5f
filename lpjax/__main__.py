"""`python -m lpjax`."""

from lpjax.cli import main

main()
