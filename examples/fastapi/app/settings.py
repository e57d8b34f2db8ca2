"""The settings of the service, from environment variables that begin with FACTS_."""

from functools import lru_cache
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="FACTS_", env_file=".env", extra="ignore")

    mongodb_uri: str = Field(default="", description="If empty, the facts are kept in a file of SQLite.")
    mongodb_database: str = "facts"
    # systemd sets STATE_DIRECTORY; the image sets FACTS_SQLITE_PATH.
    sqlite_path: Path = Path("facts.db")


@lru_cache
def get_settings() -> Settings:
    return Settings()
