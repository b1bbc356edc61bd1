"""`python -m suture` is the command `suture`."""

from suture.cli.app import main

main()
