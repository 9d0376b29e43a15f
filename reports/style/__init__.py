"""The look of figures: palette, axes, marks, rendering.

No study is known here: what is drawn is decided in `reports.figures`.
"""
