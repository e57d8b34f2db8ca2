"""Makes the database ready before the first worker starts: `python -m app.migrate`. A second run does no harm."""

import asyncio

from .settings import get_settings
from .store import open_store


async def main() -> None:
    # To open the store makes its table, or its indexes.
    store = await open_store(get_settings())
    await store.ping()
    await store.close()


if __name__ == "__main__":
    asyncio.run(main())
