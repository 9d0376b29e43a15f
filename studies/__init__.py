"""Many runs as one study: what to try, who carries it out, what it shows, what to promote.

No model and no training step lives here (`trainer` has one run), and only `studies.database` writes
to the database.
"""
