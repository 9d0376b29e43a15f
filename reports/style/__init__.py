"""The look of figures: palette, axes, marks, rendering.

No study is known here.
"""
