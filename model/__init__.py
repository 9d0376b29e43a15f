"""The from-scratch transformer: shapes and FLOPs without torch, layers and decoder with it."""
