"""What makes a model fast on a CPU: threads, block sizes, attention in bf16.

The same results as the plain code in `model`; no model is defined here.
"""
