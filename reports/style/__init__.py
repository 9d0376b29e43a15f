"""The look of figures and numbers: palette, axes, formats.

No study is known here.
"""
