"""Where records come from: the hub, local files, CSV, the course's arrays.

Nothing here tokenises or writes.
"""
