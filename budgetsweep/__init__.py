"""Finds the best language model that a compute budget can buy.

Here live the command line (`cli`), strict YAML (`config`), the budget (`constraint`) and what all
packages share: errors, files, formats, the registry. Nothing here trains, and nothing but `cli`
knows of studies and reports.
"""

__version__ = "0.1.0"
