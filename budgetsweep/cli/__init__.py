"""The command line: parse, call one function, print.

No arithmetic, no SQL, no training here.
"""
