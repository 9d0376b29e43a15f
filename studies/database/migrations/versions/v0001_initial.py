"""The first schema: what `studies.database.tables` holds, so that there is nothing to upgrade."""

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Nothing: a new database is made whole."""
