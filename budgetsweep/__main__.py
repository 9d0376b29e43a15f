"""`python -m budgetsweep`."""

from budgetsweep.cli.main import main

if __name__ == "__main__":  # workers import this module again
    main()
