"""What a client sends and gets."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field


class NewFact(BaseModel):
    model_config = ConfigDict(json_schema_extra={"examples": [{"text": "Water boils at 100 °C at sea level."}]})

    text: str = Field(min_length=1, max_length=500, description="One sentence.")


class Fact(NewFact):
    id: str = Field(examples=["6748d1c2f0a3b4c5d6e7f809"])
    created: datetime = Field(examples=["2026-11-27T12:00:00Z"])


class Facts(BaseModel):
    items: list[Fact]


class Problem(BaseModel):
    detail: str = Field(examples=["there is no such fact"])
