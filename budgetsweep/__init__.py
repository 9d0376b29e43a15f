"""budgetsweep finds the best language model that a compute budget can buy."""

__version__ = "0.1.0"
