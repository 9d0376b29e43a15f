"""budgetsweep finds the best language model that a compute budget can buy.

Here live the command line on top and what everything rests on: errors, strict configuration,
files, number formats, and the constraint. Nothing here trains, samples or writes a database.
"""

__version__ = "0.1.0"
