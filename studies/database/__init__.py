"""The study's database: tables, the only writer, readers, leases, migrations.

Nothing here proposes, trains or fits.
"""
