"""A fact as MongoDB keeps it."""

from datetime import datetime
from typing import Annotated

from beanie import Document, Indexed

from .models import Fact


class FactDocument(Document):
    text: str
    created: Annotated[datetime, Indexed()]

    class Settings:
        name = "facts"

    def fact(self) -> Fact:
        return Fact(id=str(self.id), text=self.text, created=self.created)
