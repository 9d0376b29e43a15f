"""The command line: parse, call one function, print. One file a command or a pair of them.

No arithmetic, no SQL, no training here. Heavy imports stand inside the functions, so that `--help`
and `--version` never load torch.
"""
