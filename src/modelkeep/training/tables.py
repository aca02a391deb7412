"""What checks and training take: ``core.tables``, by the name that this room knows it under."""

from modelkeep.core.tables import Column, Table

__all__ = ["Column", "Table"]
